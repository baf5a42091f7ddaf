# The agent as a service of a NixOS machine.
{ self }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hoist-agent;
  unit = "hoist-agent";
  toml = pkgs.formats.toml { };

  # Where systemd puts what LoadCredential names: readable by the service alone.
  credentials = "/run/credentials/${unit}.service";

  configFile = toml.generate "hoist-agent.toml" (
    cfg.settings
    // {
      inherit (cfg) broker;
      ca = cfg.caFile;
      certificate = "${credentials}/certificate";
      key = "${credentials}/key";
      trusted_keys = cfg.trustedKeys;
      state = "/var/lib/${unit}";
    }
  );
in
{
  options.services.hoist-agent = {
    enable = lib.mkEnableOption "the Hoist agent, which deploys this machine";

    package = lib.mkOption {
      type = lib.types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.hoist-agent;
      defaultText = lib.literalExpression "hoist.packages.\${system}.hoist-agent";
      description = "The package that holds `bin/hoist-agent`.";
    };

    broker = lib.mkOption {
      type = lib.types.strMatching "mqtts://.+";
      example = "mqtts://broker.example.org:8883";
      description = "Where the broker listens. The agent connects out; this machine opens no port.";
    };

    caFile = lib.mkOption {
      type = lib.types.path;
      example = "./certs/ca.pem";
      description = "Hoist's own certificate authority, `ca.pem`. It is public and may lie in the store.";
    };

    certificateFile = lib.mkOption {
      type = lib.types.externalPath or lib.types.str;
      example = "/var/lib/secrets/hoist/agent-web-1.pem";
      description = "This machine's certificate, a path on the machine. It says the machine's name and fleet.";
    };

    keyFile = lib.mkOption {
      type = lib.types.externalPath or lib.types.str;
      example = "/var/lib/secrets/hoist/agent-web-1.key";
      description = ''
        The certificate's private key, a path on the machine and never in the store. systemd hands it to the
        agent as a credential, so the file may belong to root with mode 0600.
      '';
    };

    trustedKeys = lib.mkOption {
      type = lib.types.nonEmptyListOf (lib.types.strMatching "hoist-[a-z0-9][a-z0-9_-]*:.+");
      example = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
      description = "Public halves of the keys that may sign deployments for this machine.";
    };

    settings = lib.mkOption {
      inherit (toml) type;
      default = { };
      example = {
        status_interval = "5m";
      };
      description = "Further settings of `agent.toml`, as `hoist-agent run --help` lists them.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !(lib.hasPrefix builtins.storeDir (toString cfg.keyFile));
        message = "services.hoist-agent.keyFile lies in the Nix store, where everybody can read it";
      }
    ];

    systemd.services.${unit} = {
      description = "Hoist agent";
      documentation = [ "https://github.com/hoist-deploy/hoist" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];

      # Never give up: an agent that stays down is a machine that is lost.
      unitConfig.StartLimitIntervalSec = 0;

      # A switch may restart the agent: the activation runs in a unit of its own and waits for the new agent to
      # confirm. A deployment without an agent must not stop the one that would have to repair it.
      unitConfig.X-StopOnRemoval = false;

      path = [
        config.nix.package
        pkgs.coreutils
        pkgs.util-linux
        config.systemd.package
      ];

      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe' cfg.package "hoist-agent"} run --config ${configFile}";
        Restart = "always";
        RestartSec = "1s";
        StateDirectory = unit;
        StateDirectoryMode = "0700";
        LoadCredential = [
          "certificate:${toString cfg.certificateFile}"
          "key:${toString cfg.keyFile}"
        ];
        # The agent activates systems as root: hardening that takes rights away would take its purpose away.
        # What it does not need is listening sockets and other users' home folders.
        UMask = "0077";
        OOMScoreAdjust = -500;
      };
    };
  };
}
