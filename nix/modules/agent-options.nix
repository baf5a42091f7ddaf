# What the agent's modules for NixOS, nix-darwin and home-manager have in common: their options, and the
# `agent.toml` that comes of them.
{
  self,
  lib,
  pkgs,
}:
let
  toml = pkgs.formats.toml { };
  system = pkgs.stdenv.hostPlatform.system;
  url = lib.types.strMatching "mqtts://.+";
in
{
  options = {
    enable = lib.mkEnableOption "the Hoist agent, which deploys this machine";

    package = lib.mkOption {
      type = lib.types.package;
      default =
        self.packages.${system}.hoist-agent
          or (throw "Hoist has no package of its agent for ${system}; set services.hoist-agent.package");
      defaultText = lib.literalExpression "hoist.packages.\${system}.hoist-agent";
      description = "The package that holds `bin/hoist-agent`.";
    };

    broker = lib.mkOption {
      type = lib.types.either url (lib.types.nonEmptyListOf url);
      example = [
        "mqtts://broker-1.example.org"
        "mqtts://broker-2.example.org:8884"
      ];
      description = ''
        Where the broker listens; the port is 8883 unless given. Of several, up to 8, the first that answers is
        taken. The agent connects out; this machine opens no port.
      '';
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
        The certificate's private key, a path on the machine and never in the store. Whoever runs the agent has to be
        able to read it, and nobody else.
      '';
    };

    trustedKeys = lib.mkOption {
      type = lib.types.nonEmptyListOf (lib.types.strMatching "hoist-[a-z0-9][a-z0-9_-]*:.+");
      example = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
      description = "Public halves of the keys that may sign deployments for this machine.";
    };

    tags = lib.mkOption {
      type = lib.types.listOf (lib.types.strMatching "[a-z0-9_][a-z0-9_.:-]{0,63}");
      default = [ ];
      example = [
        "canary"
        "rack:7"
      ];
      description = "Words that this machine is selected by, 16 at most; it reports them in its status.";
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

  # The configuration file for the options' values `cfg`, with further settings that the module knows.
  configFile =
    cfg: more:
    toml.generate "hoist-agent.toml" (
      cfg.settings
      // {
        inherit (cfg) broker;
        ca = cfg.caFile;
        certificate = toString cfg.certificateFile;
        key = toString cfg.keyFile;
        trusted_keys = cfg.trustedKeys;
      }
      // lib.optionalAttrs (cfg.tags != [ ]) { inherit (cfg) tags; }
      // more
    );

  # The agent's command line with the configuration file `file`.
  command = cfg: file: "${lib.getExe' cfg.package "hoist-agent"} run --config ${file}";

  # What the agent's jobs of launchd have in common. The volume of the store is mounted some time after launchd starts
  # its first jobs.
  launchd = command: {
    ProgramArguments = [
      "/bin/sh"
      "-c"
      "/bin/wait4path /nix/store && exec ${command}"
    ];
    RunAtLoad = true;
    # Started again whenever it ends, and at once.
    KeepAlive = true;
    ThrottleInterval = 1;
    # An activation goes on without the agent.
    AbandonProcessGroup = true;
    ProcessType = "Background";
    # 0077
    Umask = 63;
  };

  assertions = cfg: [
    {
      assertion = !(lib.hasPrefix builtins.storeDir (toString cfg.keyFile));
      message = "services.hoist-agent.keyFile lies in the Nix store, where everybody can read it";
    }
  ];

  # Within this time the service manager hears that the agent lives, or starts it again.
  watchdog = "2min";
}
