# Functions for flakes that deploy with Hoist. They need nothing but builtins.
rec {
  # The content of the file that `hoist deploy` reads, as an attribute set:
  #
  #   spec { agents = self.nixosConfigurations; }
  #   => { agents = { web-1 = "/nix/store/…-nixos-system-web-1-…"; }; }
  #
  # `agents` maps names of machines to what they shall run: a NixOS or nix-darwin system (anything with
  # `config.system.build.toplevel`), a home-manager configuration (anything with `activationPackage`), or a
  # derivation. Where a machine needs more than the path, an attribute set with `path` and the other fields of
  # the file says it:
  #
  #   web-1 = { path = self.nixosConfigurations.web-1; action = "boot"; checks = [ { unit = "nginx.service"; } ]; };
  #
  # `healthCheck` maps systems such as `x86_64-linux` to derivations whose output is one executable file; a
  # machine on which it fails goes back to what it ran before.
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
        else if value ? activationPackage then
          "${value.activationPackage}"
        else if value ? outPath then
          "${value}"
        else
          throw "hoist: the agent `${name}` is no NixOS, nix-darwin or home-manager configuration, and no derivation";
      agent =
        name: value:
        if value ? path && !(value ? outPath || value ? config || value ? activationPackage) then
          value // { path = closure name value.path; }
        else
          closure name value;
    in
    {
      agents = builtins.mapAttrs agent agents;
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
