# What the modules of the agent and of the broker have in common: the package, the identity, the form of keys, and
# further settings.
{
  self,
  lib,
  pkgs,
}:
let
  toml = pkgs.formats.toml { };
  system = pkgs.stdenv.hostPlatform.system;
in
{
  inherit toml;

  # What a key looks like that signs deployments.
  publicKey = lib.types.strMatching "hoist-[a-z0-9][a-z0-9_-]*:.+";

  # The options of the service whose program and package are called `name`, with the configuration file `file` and a
  # certificate like `certificate`. The other arguments end the descriptions.
  options =
    {
      name,
      file,
      certificate,
      aboutCA,
      aboutCertificate,
      aboutKey,
    }:
    {
      package = lib.mkOption {
        type = lib.types.package;
        default =
          self.packages.${system}.${name}
            or (throw "Hoist has no package of ${name} for ${system}; set services.${name}.package");
        defaultText = lib.literalExpression "hoist.packages.\${system}.${name}";
        description = "The package that holds `bin/${name}`.";
      };

      caFile = lib.mkOption {
        type = lib.types.path;
        example = "./certs/ca.pem";
        description = "Hoist's own certificate authority, `ca.pem`. ${aboutCA}";
      };

      certificateFile = lib.mkOption {
        type = lib.types.externalPath or lib.types.str;
        example = "/var/lib/secrets/hoist/${certificate}.pem";
        description = "${aboutCertificate} A path on the machine.";
      };

      keyFile = lib.mkOption {
        type = lib.types.externalPath or lib.types.str;
        example = "/var/lib/secrets/hoist/${certificate}.key";
        description = "The certificate's private key, a path on the machine and never in the store. ${aboutKey}";
      };

      settings = lib.mkOption {
        inherit (toml) type;
        default = { };
        description = "Further settings of `${file}`, as `${name} run --help` lists them.";
      };
    };

  # What must hold of the options' values `cfg`. `more` names what the module sets itself in the configuration file,
  # besides the identity.
  assertions =
    name: cfg: more:
    let
      own = [
        "ca"
        "certificate"
        "key"
      ]
      ++ more;
      without = builtins.filter (setting: builtins.elem setting own) (builtins.attrNames cfg.settings);
    in
    [
      {
        assertion = without == [ ];
        message = "services.${name}.settings has ${builtins.concatStringsSep ", " without}, which the module sets itself: use its options";
      }
      {
        assertion = !(lib.hasPrefix builtins.storeDir (toString cfg.keyFile));
        message = "services.${name}.keyFile lies in the Nix store, where everybody can read it";
      }
    ];
}
