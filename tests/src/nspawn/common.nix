# What the systems and the home-manager generations of booted machines have in common: the agent's package, its options,
# and how NixOS and home-manager write units. No nixpkgs: only /bin/sh and the machine's own programs.
{ repository, agent }:
let
  inherit (builtins) attrNames concatStringsSep isAttrs isBool isList map toJSON;
  stub = import (repository + "/nix/tests/stub.nix");

  # As much of TOML as settings need: JSON's strings, numbers, booleans and arrays are TOML's.
  tomlValue = value:
    if isAttrs value then
      "{ ${concatStringsSep ", " (map (key: "${toJSON key} = ${tomlValue value.${key}}") (attrNames value))} }"
    else if isList value then
      "[${concatStringsSep ", " (map tomlValue value)}]"
    else
      toJSON value;
  toml = values: concatStringsSep "" (map (key: "${toJSON key} = ${tomlValue values.${key}}\n") (attrNames values));

  # Where a machine has the programs of a package; see `tests/root.sh`.
  pkgs = stub.pkgs // {
    nix = "/packages/nix-bin";
    coreutils = "/packages/coreutils";
    util-linux = "/packages/util-linux";
    formats.toml = _: {
      type = "toml";
      generate = name: values: builtins.toFile name (toml values);
    };
  };
in
rec {
  run = name: attributes: script: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
    allowSubstitutes = false;
    preferLocalBuild = true;
  } // attributes);

  # The package of the agent. `revision` makes another store path of the same program.
  agentPackage = run "hoist-agent-${agent.revision}" { inherit (agent) program; } ''
    mkdir -p $out/bin
    cp $program $out/bin/hoist-agent
    chmod 755 $out/bin/hoist-agent
  '';

  # What the agent's module in `file` makes of the agent's options, in the configuration `around`.
  agentConfig = file: around: stub.evaluateConfig pkgs around
    (import (repository + "/nix/modules/${file}") { self.packages = { }; })
    "hoist-agent"
    (agent.settings // {
      enable = true;
      package = agentPackage;
    });

  # The lines of a section of a unit.
  value = v: if isBool v then (if v then "true" else "false") else toString v;
  line = name: v: "${name}=${value v}\n";
  section = values:
    concatStringsSep "" (map
      (name: if isList values.${name} then concatStringsSep "" (map (line name) values.${name}) else line name values.${name})
      (attrNames values));

  # For a shell.
  quote = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
}
