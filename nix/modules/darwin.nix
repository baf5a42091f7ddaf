# The agent as a daemon of a Mac with nix-darwin.
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
  configFile = common.configFile cfg { state = "/var/lib/hoist-agent"; };
in
{
  options.services.hoist-agent = common.options // {
    logFile = lib.mkOption {
      type = lib.types.str;
      default = "/var/log/hoist-agent.log";
      description = "Where the agent's log goes, which launchd does not keep itself.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = common.assertions cfg [ "state" ];

    # So that `hoist-agent status` and its like find the agent without any flag.
    environment.systemPackages = [ cfg.package ];
    environment.etc."hoist/agent.toml".source = configFile;

    launchd.daemons.hoist-agent = {
      # nix-darwin refuses to name its Nix where something else manages it.
      path = lib.optionals (config.nix.enable or true) [ config.nix.package ] ++ [
        pkgs.coreutils
        "/nix/var/nix/profiles/default/bin"
        "/run/current-system/sw/bin"
        "/usr/bin"
        "/bin"
        "/usr/sbin"
        "/sbin"
      ];
      serviceConfig = common.launchd (common.command cfg configFile) // {
        StandardErrorPath = cfg.logFile;
      };
    };
  };
}
