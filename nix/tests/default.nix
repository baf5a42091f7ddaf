# `nix-instantiate --eval --strict nix/tests` evaluates to "ok", or fails naming the tests that do not hold.
let
  stub = import ./stub.nix;
  flake = (import ../../flake.nix).outputs {
    self = flake;
    nixpkgs = {
      inherit (stub) lib;
      legacyPackages = stub.lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ] (_system: stub.pkgs);
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

    theAgentRunsWithItsConfiguration =
      agentUnit.serviceConfig.ExecStart
      == "/package/bin/hoist-agent run --config /nix/store/00000000000000000000000000000000-hoist-agent.toml";
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
      && !(holds (broker (secrets // { enable = true; keyFile = "/nix/store/x"; })).assertions);
    anAgentWithoutABrokerIsRefused = fails (agent (builtins.removeAttrs enabledAgent [ "broker" ]));

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
