{
  description = "Hoist: self-hosted continuous deployment for fleets of Nix machines";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forAllSystems = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
    in
    {
      packages = forAllSystems (pkgs: import ./nix/packages.nix { inherit pkgs; });

      overlays.default = final: _previous: {
        hoist = import ./nix/packages.nix { pkgs = final; };
      };

      nixosModules = {
        agent = import ./nix/modules/agent.nix { inherit self; };
        broker = import ./nix/modules/broker.nix { inherit self; };
      };

      darwinModules.agent = import ./nix/modules/darwin.nix { inherit self; };

      homeModules.agent = import ./nix/modules/home-manager.nix { inherit self; };

      # `lib.spec` turns `nixosConfigurations` into the file that `hoist deploy` reads.
      lib = import ./nix/lib.nix;
    };
}
