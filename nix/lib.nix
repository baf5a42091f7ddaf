# Functions for flakes that deploy with Hoist. They need nothing but builtins.
rec {
  # The content of the file that `hoist deploy` reads, as an attribute set:
  #
  #   spec { agents = self.nixosConfigurations; }
  #   => { agents = { web-1 = "/nix/store/…-nixos-system-web-1-…"; }; }
  #
  # `agents` maps names of machines to NixOS systems (or to anything with `config.system.build.toplevel`),
  # or to plain derivations. `healthCheck` maps systems such as `x86_64-linux` to derivations whose output is
  # one executable file; a machine on which it fails goes back to what it ran before.
  spec =
    {
      agents,
      healthCheck ? { },
    }:
    let
      closure =
        name: value:
        if value ? config.system.build.toplevel then
          "${value.config.system.build.toplevel}"
        else if value ? outPath then
          "${value}"
        else
          throw "hoist: the agent `${name}` is neither a NixOS system nor a derivation";
    in
    {
      agents = builtins.mapAttrs closure agents;
    }
    // (
      if healthCheck == { } then
        { }
      else
        { rollbackScript = builtins.mapAttrs (_system: check: "${check}") healthCheck; }
    );

  # The same as JSON, for `pkgs.writeText "hoist.json" (hoist.lib.specJSON { … })`.
  specJSON = arguments: builtins.toJSON (spec arguments);
}
