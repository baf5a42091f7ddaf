# The settings that the modules write for the programs, as JSON: a scenario gives them to the programs, so that a
# key that a program does not know fails a test and not a machine.
let
  stub = import ./stub.nix;
  self.packages.x86_64-linux = { };

  # A "file" whose path is its content, which then stands in the unit.
  pkgs = stub.pkgs // {
    formats.toml = _: {
      type = "toml";
      generate = _name: content: builtins.toJSON content;
    };
  };
  secrets = {
    enable = true;
    caFile = "/nonexistent/ca.pem";
    certificateFile = "/nonexistent/cert.pem";
    keyFile = "/nonexistent/cert.key";
    package = "/package";
    trustedKeys = [ "hoist-ci:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=" ];
  };
  settings =
    module: name: values:
    let
      config = stub.evaluateWith pkgs (import module { inherit self; }) name (secrets // values);
      command = config.systemd.services.${name}.serviceConfig.ExecStart;
      content = builtins.match ".* --config (.*)" command;
    in
    builtins.fromJSON (builtins.head content);
in
{
  hoist-agent = settings ../modules/agent.nix "hoist-agent" {
    broker = "mqtts://broker.example.org:8883";
    settings.status_interval = "1m";
  };
  hoist-broker = settings ../modules/broker.nix "hoist-broker" {
    address = "127.0.0.1";
    settings.max_connections = 100;
  };
}
