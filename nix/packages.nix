# Hoist's programs, a package each, so that a machine's closure holds the agent alone.
{ pkgs }:
let
  inherit (pkgs) lib;

  # What the build and the unit tests read: of the documents, only the one that is compared with what is printed.
  source = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../clippy.toml
      ../protocol
      ../certs
      ../broker
      ../agent
      ../publisher
      ../tests
      ../docs/hoist.md
      ../fuzz/corpus
    ];
  };

  program =
    {
      crate,
      binary,
      description,
      # Shell commands that make and install what is there besides the program and its manual pages.
      documents ? "",
    }:
    pkgs.rustPlatform.buildRustPackage {
      pname = binary;
      version = (lib.importTOML ../Cargo.toml).workspace.package.version;
      src = source;
      cargoLock.lockFile = ../Cargo.lock;
      cargoBuildFlags = [
        "--package"
        crate
        "--bin"
        binary
      ];
      # The scenarios start brokers, caches and mount namespaces of their own, which the build sandbox does
      # not allow; `make test` runs them. Here the unit and property tests of the program's crate run.
      cargoTestFlags = [
        "--package"
        crate
        "--lib"
      ];
      nativeBuildInputs = [ pkgs.installShellFiles ];
      # The program writes its own manual pages, so it has to run where it is built.
      postInstall = lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) (
        ''
          $out/bin/${binary} man man
          installManPage man/*.1
        ''
        + documents
      );
      meta = {
        inherit description;
        license = lib.licenses.asl20;
        mainProgram = binary;
      };
    };
in
rec {
  hoist = program {
    crate = "hoist-publisher";
    binary = "hoist";
    description = "Signs, publishes and follows deployments of Nix machines";
    documents = ''
      installShellCompletion --cmd hoist \
        --bash <($out/bin/hoist completions bash) \
        --zsh <($out/bin/hoist completions zsh) \
        --fish <($out/bin/hoist completions fish)
    '';
  };
  hoist-broker = program {
    crate = "hoist-broker";
    binary = "hoist-broker";
    description = "The MQTT broker between publishers and agents";
  };
  hoist-certs = program {
    crate = "hoist-certs";
    binary = "hoist-certs";
    description = "Certificates and signing keys for a fleet";
  };
  default = hoist;
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  # It activates systems through Linux's /proc and process descriptors.
  hoist-agent = program {
    crate = "hoist-agent";
    binary = "hoist-agent";
    description = "Carries deployments out on a Nix machine";
  };
}
