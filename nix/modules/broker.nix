# The embedded broker as a service of a NixOS machine.
{ self }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.hoist-broker;
  unit = "hoist-broker";
  common = import ./common.nix { inherit self lib pkgs; };
  credentials = "/run/credentials/${unit}.service";

  configFile = common.toml.generate "hoist-broker.toml" (
    cfg.settings
    // {
      listen = "${cfg.address}:${toString cfg.port}";
      ca = cfg.caFile;
      certificate = "${credentials}/certificate";
      key = "${credentials}/key";
      state = "/var/lib/${unit}";
    }
    // lib.optionalAttrs (cfg.trustedKeys != [ ]) { trusted_keys = cfg.trustedKeys; }
  );
in
{
  options.services.hoist-broker =
    common.options {
      name = unit;
      file = "broker.toml";
      certificate = "broker-main";
      aboutCA = "Whoever it has not certified is not let in.";
      aboutCertificate = "The broker's certificate.";
      aboutKey = "systemd hands it to the broker; nobody but root has to be able to read it.";
    }
    // {
      enable = lib.mkEnableOption "the Hoist broker, which carries deployments to agents";

      address = lib.mkOption {
        type = lib.types.str;
        default = "0.0.0.0";
        example = "[::]";
        description = "The address to listen on; IPv6 in brackets.";
      };

      port = lib.mkOption {
        type = lib.types.port;
        default = 8883;
        description = "The TCP port to listen on.";
      };

      openFirewall = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether to open the port in the firewall.";
      };

      trustedKeys = lib.mkOption {
        type = lib.types.listOf common.publicKey;
        default = [ ];
        example = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
        description = ''
          Public halves of the keys that sign deployments. With them the broker refuses what they have not signed,
          and what is older than the deployment it holds. Machines check this themselves in any case.
        '';
      };
    };

  config = lib.mkIf cfg.enable {
    assertions = common.assertions unit cfg;

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    systemd.services.${unit} = {
      description = "Hoist broker";
      documentation = [ "https://github.com/hoist-deploy/hoist" ];
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];

      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe' cfg.package "hoist-broker"} run --config ${configFile}";
        # It reads certificates, revocation lists and its audit log's file again.
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "always";
        RestartSec = "1s";
        LimitNOFILE = 524288;
        StateDirectory = unit;
        StateDirectoryMode = "0700";
        LoadCredential = [
          "certificate:${toString cfg.certificateFile}"
          "key:${toString cfg.keyFile}"
        ];

        # It talks to the whole internet and needs nothing of the machine but its port and its state.
        DynamicUser = true;
        UMask = "0077";
        AmbientCapabilities = lib.mkIf (cfg.port < 1024) [ "CAP_NET_BIND_SERVICE" ];
        CapabilityBoundingSet = if cfg.port < 1024 then [ "CAP_NET_BIND_SERVICE" ] else [ "" ];
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
        ];
      };
    };
  };
}
