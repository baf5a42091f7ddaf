# What the agent's modules for NixOS, nix-darwin and home-manager have in common: their options, and the
# `agent.toml` that comes of them.
{
  self,
  lib,
  pkgs,
}:
let
  common = import ./common.nix { inherit self lib pkgs; };
  inherit (common) publicKey;
  url = lib.types.strMatching "mqtts://.+";

  # A setting that stands in `agent.toml` only when it is set: the agent has its own default for it.
  optional =
    type: example: description:
    lib.mkOption {
      type = lib.types.nullOr type;
      default = null;
      inherit example description;
    };
in
{
  options =
    common.options {
      name = "hoist-agent";
      file = "agent.toml";
      certificate = "agent-web-1";
      aboutCA = "It is public and may lie in the store.";
      aboutCertificate = "This machine's certificate, which says the machine's name and fleet.";
      aboutKey = "Whoever runs the agent has to be able to read it, and nobody else.";
    }
    // {
      enable = lib.mkEnableOption "the Hoist agent, which deploys this machine";

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

      trustedKeys = lib.mkOption {
        type = lib.types.nonEmptyListOf publicKey;
        example = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
        description = "Public halves of the keys that may sign deployments for this machine.";
      };

      requiredSignatures = optional lib.types.ints.positive 2 "How many of the trusted keys have to sign each deployment; 1 unless set.";

      epochKeys = optional (lib.types.listOf publicKey) [
        "hoist-admin:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw="
      ] "Those of the trusted keys that may raise the epoch; none unless set.";

      tags = lib.mkOption {
        type = lib.types.listOf (lib.types.strMatching "[a-z0-9_][a-z0-9_.:-]{0,63}");
        default = [ ];
        example = [
          "canary"
          "rack:7"
        ];
        description = "Words that this machine is selected by, 16 at most; it reports them in its status.";
      };

      keepGenerations = optional (lib.types.ints.between 1 20) 5 ''
        How many of the systems that were deployed last are kept from the garbage collector, to go back to without a
        binary cache; 3 unless set.
      '';
    };

  # The configuration file for the options' values `cfg`, with further settings that the module knows.
  configFile =
    cfg: more:
    common.toml.generate "hoist-agent.toml" (
      cfg.settings
      // {
        inherit (cfg) broker;
        ca = cfg.caFile;
        certificate = toString cfg.certificateFile;
        key = toString cfg.keyFile;
        trusted_keys = cfg.trustedKeys;
      }
      // lib.optionalAttrs (cfg.tags != [ ]) { inherit (cfg) tags; }
      // lib.filterAttrs (_name: value: value != null) {
        required_signatures = cfg.requiredSignatures;
        epoch_keys = cfg.epochKeys;
        keep_generations = cfg.keepGenerations;
      }
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

  # What the agent would refuse at its start, when it may be too late, is refused before a system is built.
  #
  # `more` names what the module itself sets of `agent.toml`, besides what every one of them does.
  assertions =
    cfg: more:
    common.assertions "hoist-agent" cfg (
      [
        "broker"
        "trusted_keys"
      ]
      ++ more
    )
    ++ [
      {
        assertion = builtins.all (key: builtins.elem key cfg.trustedKeys) (
          if cfg.epochKeys == null then [ ] else cfg.epochKeys
        );
        message = "services.hoist-agent.epochKeys has keys that are not among its trustedKeys";
      }
      {
        assertion =
          cfg.requiredSignatures == null || cfg.requiredSignatures <= builtins.length cfg.trustedKeys;
        message = "services.hoist-agent.requiredSignatures asks for more signatures than there are trustedKeys: nothing could be deployed";
      }
      {
        assertion = builtins.length cfg.tags <= 16;
        message = "services.hoist-agent.tags has more than 16 tags";
      }
      {
        assertion = !(builtins.isList cfg.broker) || builtins.length cfg.broker <= 8;
        message = "services.hoist-agent.broker names more than 8 brokers";
      }
    ];

  # Within this time the service manager hears that the agent lives, or starts it again.
  watchdog = "2min";
}
