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
  common = import ./agent-options.nix { inherit self lib pkgs; };
  unit = "hoist-agent";

  # Where systemd puts what LoadCredential names: readable by the service alone.
  credentials = "/run/credentials/${unit}.service";
  configFile = common.configFile cfg {
    certificate = "${credentials}/certificate";
    key = "${credentials}/key";
    state = "/var/lib/${unit}";
  };
in
{
  options.services.hoist-agent = common.options;

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg [ "state" ];

    # So that `hoist-agent status` and its like find the agent without any flag.
    environment.systemPackages = [ cfg.package ];
    environment.etc."hoist/agent.toml".source = configFile;

    systemd.services.${unit} = {
      description = "Hoist agent";
      documentation = [ "https://github.com/hoist-deploy/hoist" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];

      # Never give up: an agent that stays down is a machine that is lost.
      unitConfig.StartLimitIntervalSec = 0;

      # A switch may restart the agent: the activation runs in a unit of its own and waits for the new agent to
      # confirm. It restarts it once everything else is in place, so that the old one reports until then. A
      # deployment without an agent must not stop the one that would have to repair it.
      restartIfChanged = true;
      stopIfChanged = false;
      unitConfig.X-StopOnRemoval = false;

      # As every service of NixOS that runs Nix itself: the way to caches that are behind a proxy, or asked over SSH.
      environment = config.nix.envVars // config.networking.proxy.envVars;
      path = [
        config.nix.package
        config.programs.ssh.package
        pkgs.coreutils
        pkgs.util-linux
        config.systemd.package
      ];

      serviceConfig = {
        Type = "notify";
        ExecStart = common.command cfg configFile;
        Restart = "always";
        RestartSec = "1s";
        WatchdogSec = common.watchdog;
        StateDirectory = unit;
        StateDirectoryMode = "0700";
        LoadCredential = [
          "certificate:${toString cfg.certificateFile}"
          "key:${toString cfg.keyFile}"
        ];
        # No sandbox: Nix writes to the store as root, and where systemd cannot start a unit for the activation, that
        # is a child of this one.
        UMask = "0077";
        OOMScoreAdjust = -500;
      };
    };

    # systemd reads credentials when a unit starts: a renewed certificate is taken by starting it again, which
    # disturbs no activation.
    systemd.paths."${unit}-renewed" = {
      description = "A renewed certificate of the Hoist agent";
      wantedBy = [ "multi-user.target" ];
      pathConfig.PathChanged = [ (toString cfg.certificateFile) ];
    };
    systemd.services."${unit}-renewed" = {
      description = "Give the Hoist agent its renewed certificate";
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${config.systemd.package}/bin/systemctl --no-block try-restart ${unit}.service";
      };
    };
  };
}
