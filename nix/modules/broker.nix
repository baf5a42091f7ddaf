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

  # The broker runs as a user of its own and reads its files again when they change. What systemd hands over with
  # LoadCredential stays as it was at the start, so root copies certificate and key, at the start and at each reload,
  # into a folder where nobody but root can put anything.
  files = "/run/${unit}-files";
  takeFiles = pkgs.writeShellScript "${unit}-files" ''
    set -eu
    umask 077
    take() {
      new=$(${pkgs.coreutils}/bin/mktemp ${files}/new.XXXXXX)
      ${pkgs.coreutils}/bin/cp -- "$1" "$new"
      ${pkgs.coreutils}/bin/chown --reference="$STATE_DIRECTORY" "$new"
      ${pkgs.coreutils}/bin/mv -f "$new" "${files}/$2"
    }
    ${pkgs.coreutils}/bin/install -d -m 0755 ${files}
    take ${lib.escapeShellArg (toString cfg.certificateFile)} certificate
    take ${lib.escapeShellArg (toString cfg.keyFile)} key
  '';

  configFile = common.toml.generate "hoist-broker.toml" (
    cfg.settings
    // {
      listen = "${cfg.address}:${toString cfg.port}";
      ca = cfg.caFile;
      certificate = "${files}/certificate";
      key = "${files}/key";
      state = "/var/lib/${unit}";
    }
    // lib.optionalAttrs (cfg.trustedKeys != [ ]) { trusted_keys = cfg.trustedKeys; }
    // lib.optionalAttrs (cfg.requiredSignatures != null) { required_signatures = cfg.requiredSignatures; }
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
      aboutKey = "The broker is given a copy; nobody but root has to be able to read it.";
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

      requiredSignatures = lib.mkOption {
        type = lib.types.nullOr lib.types.ints.positive;
        default = null;
        example = 2;
        description = "How many of the trusted keys have to sign each deployment; 1 unless set.";
      };
    };

  config = lib.mkIf cfg.enable {
    assertions = common.assertions unit cfg [
      "listen"
      "state"
    ];

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall [ cfg.port ];

    systemd.services.${unit} = {
      description = "Hoist broker";
      documentation = [ "https://github.com/hoist-deploy/hoist" ];
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];

      serviceConfig = {
        Type = "notify";
        ExecStartPre = "+${takeFiles}";
        ExecStart = "${lib.getExe' cfg.package "hoist-broker"} run --config ${configFile}";
        # It reads certificates, revocation lists and its audit log's file again.
        ExecReload = [
          "+${takeFiles}"
          "${pkgs.coreutils}/bin/kill -HUP $MAINPID"
        ];
        # The number of its user may be another service's next.
        ExecStopPost = "+${pkgs.coreutils}/bin/rm -rf ${files}";
        Restart = "always";
        RestartSec = "1s";
        LimitNOFILE = 524288;
        StateDirectory = unit;
        StateDirectoryMode = "0700";

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

    # A renewed certificate is taken without ending a connection.
    systemd.paths."${unit}-renewed" = {
      description = "A renewed certificate of the Hoist broker";
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = [
        (toString cfg.certificateFile)
        (toString cfg.keyFile)
      ];
    };
    systemd.services."${unit}-renewed" = {
      description = "Give the Hoist broker its renewed certificate";
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${config.systemd.package}/bin/systemctl --no-block try-reload-or-restart ${unit}.service";
      };
    };
  };
}
