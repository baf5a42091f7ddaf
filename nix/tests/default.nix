# `nix-instantiate --eval --strict nix/tests` evaluates to "ok", or fails naming the tests that do not hold.
let
  stub = import ./stub.nix;
  flake = (import ../../flake.nix).outputs {
    self = flake;
    nixpkgs = {
      inherit (stub) lib;
      legacyPackages = {
        x86_64-linux = stub.pkgs;
        aarch64-linux = stub.pkgs;
        x86_64-darwin = mac;
        aarch64-darwin = mac;
      };
    };
  };

  secrets = {
    caFile = "/etc/hoist/ca.pem";
    certificateFile = "/var/lib/secrets/cert.pem";
    keyFile = "/var/lib/secrets/cert.key";
    package = "/package";
  };
  agent = stub.evaluate flake.nixosModules.agent "hoist-agent";
  broker = stub.evaluate flake.nixosModules.broker "hoist-broker";

  enabledAgent = secrets // {
    enable = true;
    broker = "mqtts://broker.example.org";
    trustedKeys = [ "hoist-ci:AAAA" ];
    settings.status_interval = "1m";
  };
  agentUnit = (agent enabledAgent).systemd.services.hoist-agent;
  mac = stub.pkgs // {
    stdenv.hostPlatform = {
      system = "aarch64-darwin";
      isLinux = false;
      isDarwin = true;
    };
  };
  command = "/package/bin/hoist-agent run --config /nix/store/00000000000000000000000000000000-hoist-agent.toml";
  launched = [
    "/bin/sh"
    "-c"
    "/bin/wait4path /nix/store && exec ${command}"
  ];
  daemon =
    (stub.evaluateWith mac flake.darwinModules.agent "hoist-agent" enabledAgent).launchd.daemons.hoist-agent;
  inHome = pkgs: stub.evaluateWith pkgs flake.homeModules.agent "hoist-agent" enabledAgent;

  brokerUnit = (broker (secrets // { enable = true; })).systemd.services.hoist-broker;

  holds = builtins.all (assertion: assertion.assertion);
  fails = value: !(builtins.tryEval (builtins.deepSeq value true)).success;

  tests = {
    everyPackageIsBuiltFromItsCrate =
      builtins.mapAttrs (_name: package: package.cargoBuildFlags) flake.packages.x86_64-linux == {
        default = [ "--package" "hoist-publisher" "--bin" "hoist" ];
        hoist = [ "--package" "hoist-publisher" "--bin" "hoist" ];
        hoist-agent = [ "--package" "hoist-agent" "--bin" "hoist-agent" ];
        hoist-broker = [ "--package" "hoist-broker" "--bin" "hoist-broker" ];
        hoist-certs = [ "--package" "hoist-certs" "--bin" "hoist-certs" ];
      };
    packagesHaveAVersionAndSources =
      builtins.match "[0-9]+\\.[0-9]+\\.[0-9]+" flake.packages.aarch64-darwin.hoist.version != null
      && builtins.pathExists flake.packages.x86_64-linux.hoist.src;
    theAgentIsForLinux =
      !(
        import ../packages.nix {
          pkgs = stub.pkgs // {
            stdenv.hostPlatform.isLinux = false;
          };
        } ? hoist-agent
      );
    theOverlayHasThePackages = (flake.overlays.default stub.pkgs { }).hoist ? hoist-agent;

    aDisabledAgentChangesNothing = agent (secrets // { broker = "mqtts://b"; trustedKeys = [ "hoist-a:A" ]; }) == { };
    aDisabledBrokerChangesNothing = broker secrets == { };

    theAgentRunsWithItsConfiguration = agentUnit.serviceConfig.ExecStart == command;
    whoSitsAtTheMachineNeedsNoFlags =
      let
        systemHas =
          system:
          system.environment.systemPackages == [ "/package" ]
          && command
          == "/package/bin/hoist-agent run --config ${system.environment.etc."hoist/agent.toml".source}";
        home = inHome stub.pkgs;
      in
      systemHas (agent enabledAgent)
      && systemHas (stub.evaluateWith mac flake.darwinModules.agent "hoist-agent" enabledAgent)
      && home.home.packages == [ "/package" ]
      && command == "/package/bin/hoist-agent run --config ${home.xdg.configFile."hoist/agent.toml".source}";
    whatIsNotSetIsLeftToTheAgent =
      let
        settings = values: (agent (enabledAgent // values)).environment.etc."hoist/agent.toml".source.settings;
        set = settings {
          keepGenerations = 5;
          requiredSignatures = 2;
          epochKeys = [ "hoist-ci:AAAA" ];
        };
        unset = settings { };
      in
      set.keep_generations == 5
      && set.required_signatures == 2
      && set.epoch_keys == [ "hoist-ci:AAAA" ]
      && !(unset ? keep_generations || unset ? required_signatures || unset ? epoch_keys)
      # Where somebody has set it so far.
      && (settings { settings.keep_generations = 7; }).keep_generations == 7;
    theAgentRunsNixAsTheServicesOfNixOSDo =
      let
        unit =
          (stub.evaluateConfig stub.pkgs {
            nix = {
              package = "/nix";
              envVars.NIX_A = "1";
            };
            networking.proxy.envVars.https_proxy = "http://proxy";
          } flake.nixosModules.agent "hoist-agent" enabledAgent).systemd.services.hoist-agent;
      in
      unit.environment == {
        NIX_A = "1";
        https_proxy = "http://proxy";
      }
      && builtins.elem "/openssh" unit.path;
    aSettingThatTheModuleWouldReplaceIsRefused =
      let
        kept = settings: holds (agent (enabledAgent // { inherit settings; })).assertions;
      in
      kept { keepalive = "1m"; }
      && !(kept { state = "/data/hoist"; })
      && !(kept { trusted_keys = [ ]; })
      && !(holds (stub.evaluate flake.homeModules.agent "hoist-agent" (enabledAgent // { settings.key = "/k"; })).assertions)
      # There it is the user's choice.
      && holds (stub.evaluate flake.homeModules.agent "hoist-agent" (enabledAgent // { settings.state = "/s"; })).assertions
      && !(holds (broker (secrets // { enable = true; settings.listen = "[::]:1"; })).assertions);
    whatTheAgentWouldRefuseAtItsStartIsRefusedBefore =
      let
        kept = values: holds (agent (enabledAgent // values)).assertions;
        many = n: value: builtins.genList (_: value) n;
      in
      kept {
        epochKeys = enabledAgent.trustedKeys;
        requiredSignatures = 1;
        tags = many 16 "a";
        broker = many 8 "mqtts://b";
      }
      && !(kept { epochKeys = [ "hoist-other:AAAA" ]; })
      && !(kept { requiredSignatures = 2; })
      && !(kept { tags = many 17 "a"; })
      && !(kept { broker = many 9 "mqtts://b"; });
    theUnitInTheDocumentsIsTheOneOfTheModule =
      let
        documents = builtins.readFile ../../docs/machines.md;
        says =
          settings: name:
          builtins.match ".*\n${name}=${toString settings.${name}}\n.*" documents != null;
        inherit (agentUnit) serviceConfig unitConfig;
      in
      builtins.all (says serviceConfig) [
        "Type"
        "Restart"
        "RestartSec"
        "WatchdogSec"
        "UMask"
        "OOMScoreAdjust"
      ]
      && says unitConfig "StartLimitIntervalSec";
    theAgentIsWatched = agentUnit.serviceConfig.Type == "notify" && agentUnit.serviceConfig ? WatchdogSec;
    aSwitchRestartsTheAgentAtItsEndAndNeverRemovesIt =
      agentUnit.restartIfChanged && !agentUnit.stopIfChanged && !agentUnit.unitConfig.X-StopOnRemoval;
    aRenewedCertificateReachesTheAgent =
      (agent enabledAgent).systemd.paths.hoist-agent-renewed.pathConfig.PathChanged
      == [ "/var/lib/secrets/cert.pem" ]
      && (agent enabledAgent).systemd.services.hoist-agent-renewed.serviceConfig.ExecStart
      == "/systemd/bin/systemctl --no-block try-restart hoist-agent.service";

    aMacStartsTheAgentAndKeepsItsActivations =
      daemon.serviceConfig.ProgramArguments == launched
      && daemon.serviceConfig.KeepAlive
      && daemon.serviceConfig.AbandonProcessGroup
      && builtins.elem "/nix" daemon.path;
    aMacWithoutAPackageForItIsToldSo = fails (
      (stub.evaluateWith mac flake.darwinModules.agent "hoist-agent" (
        builtins.removeAttrs enabledAgent [ "package" ]
      )).launchd.daemons.hoist-agent.serviceConfig
    );
    aUserOfLinuxHasAUnitAndNoJobOfLaunchd =
      (inHome stub.pkgs).systemd.user.services.hoist-agent.Service.ExecStart == command
      && (inHome stub.pkgs).systemd.user.services.hoist-agent.Install.WantedBy == [ "default.target" ]
      && (inHome stub.pkgs).launchd.agents == { };
    aUserOfAMacHasAJobOfLaunchdAndNoUnit =
      (inHome mac).launchd.agents.hoist-agent.config.ProgramArguments == launched
      && (inHome mac).systemd.user.services == { };
    aUserWithoutANixOfTheirOwnGetsOne =
      builtins.match "PATH=/pkgs-nix/bin:.*" (builtins.head
        (stub.evaluateConfig stub.pkgs { nix.package = null; } flake.homeModules.agent "hoist-agent" enabledAgent)
        .systemd.user.services.hoist-agent.Service.Environment
      ) != null;
    theAgentIsNeverGivenUp =
      agentUnit.serviceConfig.Restart == "always" && agentUnit.unitConfig.StartLimitIntervalSec == 0;
    secretsReachTheAgentAsCredentials =
      agentUnit.serviceConfig.LoadCredential == [
        "certificate:/var/lib/secrets/cert.pem"
        "key:/var/lib/secrets/cert.key"
      ];
    aSecretInTheStoreIsRefused =
      holds (agent enabledAgent).assertions
      && !(holds (agent (enabledAgent // { keyFile = "/nix/store/x"; })).assertions)
      && !(holds (stub.evaluate flake.homeModules.agent "hoist-agent" (enabledAgent // { keyFile = "/nix/store/x"; })).assertions)
      && !(holds (broker (secrets // { enable = true; keyFile = "/nix/store/x"; })).assertions);
    anAgentWithoutABrokerIsRefused = fails (agent (builtins.removeAttrs enabledAgent [ "broker" ]));

    theBrokerReadsItsFilesAgainOnReload = 
      builtins.length brokerUnit.serviceConfig.ExecReload == 2
      && builtins.elemAt brokerUnit.serviceConfig.ExecReload 1 == "/coreutils/bin/kill -HUP $MAINPID"
      && builtins.head brokerUnit.serviceConfig.ExecReload == brokerUnit.serviceConfig.ExecStartPre;
    aRenewedCertificateReachesTheBrokerWithoutARestart =
      let
        enabled = broker (secrets // { enable = true; });
      in
      enabled.systemd.paths.hoist-broker-renewed.pathConfig.PathChanged == [
        "/var/lib/secrets/cert.pem"
        "/var/lib/secrets/cert.key"
      ]
      && enabled.systemd.services.hoist-broker-renewed.serviceConfig.ExecStart
      == "/systemd/bin/systemctl --no-block try-reload-or-restart hoist-broker.service";
    theBrokerIsNotRoot = brokerUnit.serviceConfig.DynamicUser && brokerUnit.serviceConfig.NoNewPrivileges;
    theFirewallStaysShutUnlessAsked =
      (broker (secrets // { enable = true; })).networking.firewall.allowedTCPPorts == { }
      && (broker (secrets // { enable = true; openFirewall = true; })).networking.firewall.allowedTCPPorts == [ 8883 ];

    aSpecNamesClosuresAndHealthChecks =
      flake.lib.spec {
        agents = {
          web-1.config.system.build.toplevel = "/nix/store/a-nixos-system";
          tool.outPath = "/nix/store/b-tool";
          alice.activationPackage = "/nix/store/d-home";
          web-2 = {
            path.config.system.build.toplevel = "/nix/store/e-nixos-system";
            action = "boot";
            checks = [ { unit = "nginx.service"; } ];
          };
        };
        healthCheck.x86_64-linux = "/nix/store/c-check";
      } == {
        agents = {
          web-1 = "/nix/store/a-nixos-system";
          tool = "/nix/store/b-tool";
          alice = "/nix/store/d-home";
          web-2 = {
            path = "/nix/store/e-nixos-system";
            action = "boot";
            checks = [ { unit = "nginx.service"; } ];
          };
        };
        rollbackScript.x86_64-linux = "/nix/store/c-check";
      };
    aSpecWithoutHealthCheckHasNone = flake.lib.specJSON { agents.a.outPath = "/x"; } == ''{"agents":{"a":"/x"}}'';
    aSpecOfSomethingElseIsRefused = fails (flake.lib.spec { agents.a = { }; });
  };

  failed = builtins.filter (name: !tests.${name}) (builtins.attrNames tests);
in
if failed == [ ] then
  "ok: ${toString (builtins.length (builtins.attrNames tests))} tests of nix/ hold"
else
  throw "tests of nix/ that do not hold: ${builtins.concatStringsSep ", " failed}"
