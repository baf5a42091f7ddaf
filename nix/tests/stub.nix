# As much of nixpkgs as Hoist's expressions touch, so that they can be evaluated where there is no nixpkgs.
#
# Types are names here: nothing is checked against them. What is tested is that every expression evaluates,
# that options get their values, and what comes out in units, settings and packages.
rec {
  lib = {
    mkEnableOption = description: {
      inherit description;
      default = false;
    };
    mkOption = option: option;
    mkIf = condition: content: if condition then content else { };
    literalExpression = text: text;
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    getExe' = package: name: "${package}/bin/${name}";
    escapeShellArg = text: "'${text}'";
    optionalString = condition: text: if condition then text else "";
    optionals = condition: list: if condition then list else [ ];
    makeBinPath = packages: builtins.concatStringsSep ":" (map (package: "${package}/bin") packages);
    filterAttrs =
      keep: attrs:
      builtins.removeAttrs attrs (
        builtins.filter (name: !keep name attrs.${name}) (builtins.attrNames attrs)
      );
    optionalAttrs = condition: attrs: if condition then attrs else { };
    genAttrs =
      names: f:
      builtins.listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    licenses.asl20 = "Apache-2.0";
    # Paths that do not exist fail here, as they do in nixpkgs.
    fileset = {
      unions = map (path: if builtins.pathExists path then path else throw "no such path: ${toString path}");
      toSource = { root, fileset }: builtins.deepSeq fileset root;
    };
    types = {
      package = "package";
      path = "path";
      str = "str";
      port = "port";
      bool = "bool";
      strMatching = _pattern: "str";
      ints.positive = "int";
      ints.between = _lowest: _highest: "int";
      nullOr = type: "null or ${type}";
      either = one: other: "${one} or ${other}";
      listOf = type: "list of ${type}";
      nonEmptyListOf = type: "list of ${type}";
    };
  };

  pkgs = {
    inherit lib;
    stdenv = {
      hostPlatform = {
        system = "x86_64-linux";
        isLinux = true;
        isDarwin = false;
      };
      buildPlatform.canExecute = _: true;
    };
    installShellFiles = "/install-shell-files";
    nix = "/pkgs-nix";
    coreutils = "/coreutils";
    util-linux = "/util-linux";
    # Its text as well, so that tests can run it.
    writeShellScript = name: text: {
      inherit text;
      outPath = "/nix/store/00000000000000000000000000000000-${name}";
    };
    rustPlatform.buildRustPackage = package: package;
    formats.toml = _: {
      type = "toml";
      # The settings themselves, so that tests can look at them; a path in them, as in a unit.
      # Whole settings are forced, as writing them to a file does.
      generate = name: settings: builtins.deepSeq settings {
        inherit settings;
        outPath = "/nix/store/00000000000000000000000000000000-${name}";
      };
    };
  };

  # The configuration that a module makes of `services.<name> = values`.
  evaluate = evaluateWith pkgs;

  evaluateWith = pkgs: evaluateConfig pkgs { };

  # The same with another configuration around it.
  evaluateConfig =
    pkgs: around: module: name: values:
    let
      result = module {
        inherit lib pkgs;
        config = {
          services.${name} = defaults // values;
          nix = {
            package = "/nix";
            envVars = { };
          };
          networking.proxy.envVars = { };
          programs.ssh.package = "/openssh";
          home.homeDirectory = "/home/ann";
          systemd.package = "/systemd";
        }
        // around;
      };
      options = result.options.services.${name};
      unknown = builtins.attrNames (builtins.removeAttrs values (builtins.attrNames options));
      defaults = builtins.mapAttrs (
        option: definition:
        definition.default or (throw "services.${name}.${option} has no value and no default")
      ) options;
    in
    if unknown == [ ] then
      result.config
    else
      throw "services.${name} has no option ${builtins.concatStringsSep ", " unknown}";
}
