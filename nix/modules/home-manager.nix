# The agent as a service of one user, without root: for home-manager configurations and plain profiles.
#
# On Linux it runs while the user is logged in, or always after `loginctl enable-linger USER`.
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
  inherit (pkgs.stdenv) hostPlatform;
  # State and profile are the agent's defaults for a user: below XDG_STATE_HOME.
  configFile = common.configFile cfg { };
  command = common.command cfg configFile;
  # home-manager leaves it open which Nix a user has.
  nix = if (config.nix.package or null) != null then config.nix.package else pkgs.nix;
  programs = [
    nix
    pkgs.coreutils
  ];
in
{
  options.services.hoist-agent = common.options;

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg [ ];

    # So that `hoist-agent status` and its like find the agent without any flag.
    home.packages = [ cfg.package ];
    xdg.configFile."hoist/agent.toml".source = configFile;

    systemd.user.services = lib.mkIf hostPlatform.isLinux {
      hoist-agent = {
        Unit = {
          Description = "Hoist agent";
          Documentation = "https://github.com/hoist-deploy/hoist";
          StartLimitIntervalSec = 0;
        };
        Service = {
          Type = "notify";
          ExecStart = command;
          Restart = "always";
          RestartSec = "1s";
          WatchdogSec = common.watchdog;
          UMask = "0077";
          Environment = [
            "PATH=${lib.makeBinPath (programs ++ [ pkgs.util-linux ])}:/run/current-system/sw/bin:/usr/bin:/bin"
          ];
        };
        Install.WantedBy = [ "default.target" ];
      };
    };

    launchd.agents = lib.mkIf hostPlatform.isDarwin {
      hoist-agent = {
        enable = true;
        config = common.launchd command // {
          EnvironmentVariables.PATH = "${lib.makeBinPath programs}:/usr/bin:/bin:/usr/sbin:/sbin";
          StandardErrorPath = "${config.home.homeDirectory}/Library/Logs/hoist-agent.log";
        };
      };
    };
  };
}
