# Made-up closures: no nixpkgs, only /bin/sh and the machine's coreutils. What Hoist sees of them from outside
# is what it sees of real ones.
{ spec }:
let
  parameters = builtins.fromJSON spec;

  run = name: attributes: script: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
    # Else Nix would ask the caches for the output first.
    allowSubstitutes = false;
    preferLocalBuild = true;
  } // attributes);

  # Replaces the words @out@ and @VERSION@ in a script.
  install = ''
    install_script() {
      printf %s "$1" | sed -e "s|@out@|$out|g" -e "s|@version@|$version|g" > "$2"
      chmod 755 "$2"
    }
  '';

  kernel = run "linux-6.1" { } ''
    mkdir -p $out/lib/modules
    echo "a kernel" > $out/bzImage
    echo "an initrd" > $out/initrd
  '';

  nixos = { name, version, script }:
    let
      units = run "system-units" { inherit version; } ''
        mkdir $out
        echo "Description=web server $version" > $out/web.service
      '';
      etc = run "etc" { inherit version units; } ''
        mkdir -p $out/etc/systemd
        ln -s $units $out/etc/systemd/system
        echo "$version" > $out/etc/version
      '';
    in
    run "nixos-system-${name}-${version}" { inherit version script etc units kernel; } ''
      ${install}
      mkdir -p $out/bin
      printf %s "$version" > $out/nixos-version
      printf %s "${builtins.currentSystem}" > $out/system
      ln -s $etc/etc $out/etc
      ln -s $kernel/bzImage $out/kernel
      ln -s $kernel/initrd $out/initrd
      ln -s $kernel $out/kernel-modules
      printf '#!/bin/sh\n' > $out/init
      chmod 755 $out/init
      install_script "$script" $out/bin/switch-to-configuration
    '';

  # A plain profile: a program and what it needs.
  profile = { name, version }:
    let library = run "lib${name}" { inherit version; } "echo $version > $out";
    in run "${name}-${version}" { inherit version library; } ''
      ${install}
      mkdir -p $out/bin
      install_script "#!/bin/sh
      cat $library" $out/bin/tool
    '';

  # An executable file of the store.
  program = { name, version, script }: run name { inherit version script; } ''
    ${install}
    install_script "$script" $out
  '';
in
if parameters.type == "nixos" then nixos (removeAttrs parameters [ "type" ])
else if parameters.type == "profile" then profile (removeAttrs parameters [ "type" ])
else program (removeAttrs parameters [ "type" ])
