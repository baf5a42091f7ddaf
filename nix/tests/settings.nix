# The settings that the modules write for the programs, as JSON: a scenario gives them to the programs, so that a
# key that a program does not know fails a test and not a machine.
let
  stub = import ./stub.nix;
  self.packages.x86_64-linux = { };

  # A "file" whose path is its content, which then stands in the unit.
  withContent =
    pkgs:
    pkgs
    // {
      formats.toml = _: {
        type = "toml";
        generate = _name: content: builtins.toJSON content;
      };
    };
  linux = withContent stub.pkgs;
  mac = withContent (
    stub.pkgs
    // {
      stdenv.hostPlatform = {
        system = "aarch64-darwin";
        isLinux = false;
        isDarwin = true;
      };
    }
  );
  secrets = {
    enable = true;
    caFile = "/nonexistent/ca.pem";
    certificateFile = "/nonexistent/cert.pem";
    keyFile = "/nonexistent/cert.key";
    package = "/package";
    trustedKeys = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
  };
  evaluate =
    pkgs: module: name: values:
    stub.evaluateWith pkgs (import module { inherit self; }) name (secrets // values);
  # What stands behind `--config` in a command line.
  content =
    command: builtins.fromJSON (builtins.head (builtins.match ".* --config (.*)" command));

  agent =
    pkgs: module:
    evaluate pkgs module "hoist-agent" {
      broker = [
        "mqtts://broker-1.example.org"
        "mqtts://broker-2.example.org:8884"
      ];
      tags = [ "rack:7" ];
      requiredSignatures = 1;
      epochKeys = secrets.trustedKeys;
      keepGenerations = 5;
      settings.status_interval = "1m";
    };
  broker = evaluate linux ../modules/broker.nix "hoist-broker" {
    address = "127.0.0.1";
    requiredSignatures = 1;
    settings.max_connections = 100;
  };
  lastOf = list: builtins.elemAt list (builtins.length list - 1);
in
{
  hoist-agent = {
    nixos = content (agent linux ../modules/agent.nix).systemd.services.hoist-agent.serviceConfig.ExecStart;
    darwin = content (
      lastOf (agent mac ../modules/darwin.nix).launchd.daemons.hoist-agent.serviceConfig.ProgramArguments
    );
    home = content (
      (agent linux ../modules/home-manager.nix).systemd.user.services.hoist-agent.Service.ExecStart
    );
    home-on-a-mac = content (
      lastOf (agent mac ../modules/home-manager.nix).launchd.agents.hoist-agent.config.ProgramArguments
    );
  };
  hoist-broker.nixos = content broker.systemd.services.hoist-broker.serviceConfig.ExecStart;
}
