# A NixOS system for a booted machine: the agent's unit as nix/modules/agent.nix makes it, further units, and the
# scripts that a boot and a switch run. No nixpkgs: only /bin/sh and the machine's own programs.
{ spec, repository }:
let
  inherit (builtins) attrNames concatStringsSep map removeAttrs toJSON;
  parameters = builtins.fromJSON spec;
  common = import (repository + "/tests/src/nspawn/common.nix") {
    inherit repository;
    inherit (parameters) agent;
  };
  inherit (common) quote run section value;

  agentConfig = common.agentConfig "agent.nix" {
    nix = {
      package = "/packages/nix-bin";
      envVars = { };
    };
    systemd.package = "/packages/systemd";
  };
  # With what the configuration sets besides the module.
  agentUnits = agentConfig.systemd // {
    services = agentConfig.systemd.services // {
      hoist-agent = agentConfig.systemd.services.hoist-agent // parameters.agentUnit;
    };
  };

  # What NixOS's modules write for a service: nixpkgs, nixos/lib/systemd-lib.nix, `serviceToUnit`.
  unitKeys = {
    description = "Description";
    documentation = "Documentation";
    wants = "Wants";
    requires = "Requires";
    after = "After";
    before = "Before";
    conflicts = "Conflicts";
  };
  known = [ "wantedBy" "path" "environment" "unitConfig" "serviceConfig" "restartIfChanged" "stopIfChanged" "reloadIfChanged" ]
    ++ attrNames unitKeys;
  searchPath = service: concatStringsSep ":" (map (package: "${package}/bin") (
    map toString (service.path or [ ])
    # Every service of NixOS has these.
    ++ map (name: "/packages/${name}") [ "coreutils" "findutils" "grep" "sed" "systemd" ]
  ));
  head = unit:
    let heads = builtins.filter (key: unit ? ${key}) (attrNames unitKeys);
    in
    "[Unit]\n"
    + section (builtins.listToAttrs (map (key: { name = unitKeys.${key}; value = unit.${key}; }) heads))
    + section (unit.unitConfig or { });
  service = name: service:
    let
      unknown = attrNames (removeAttrs service known);
      environment = { PATH = searchPath service; } // (service.environment or { });
      flag = key: setting: if service ? ${key} && service.${key} == setting then "X-${
        { restartIfChanged = "RestartIfChanged"; stopIfChanged = "StopIfChanged"; reloadIfChanged = "ReloadIfChanged"; }.${key}
      }=${value setting}\n" else "";
    in
    if unknown != [ ] then
      throw "${name}: what does NixOS write for ${concatStringsSep ", " unknown}?"
    else
      head service
      + "\n[Service]\n"
      + concatStringsSep "" (map (key: "Environment=${toJSON "${key}=${value environment.${key}}"}\n") (attrNames environment))
      + flag "reloadIfChanged" true
      + flag "restartIfChanged" false
      + flag "stopIfChanged" false
      + section service.serviceConfig;

  unitsOf = config:
    let
      named = suffix: text: units: builtins.listToAttrs (map (name: {
        name = "${name}.${suffix}";
        value = {
          text = text name units.${name};
          wantedBy = units.${name}.wantedBy or [ ];
        };
      }) (attrNames units));
      path = _name: unit: head unit + "\n[Path]\n" + section unit.pathConfig;
    in
    named "service" service config.services
    // named "path" path (config.paths or { })
    // (
      let others = attrNames (removeAttrs config [ "services" "paths" ]);
      in if others == [ ] then { } else throw "what does NixOS write for systemd.${concatStringsSep ", " others}?"
    );
  units = (if parameters.agent == null then { } else unitsOf agentUnits) // parameters.units;

  installUnit = name: ''
    printf '%s' ${quote units.${name}.text} > $out/${name}
  '' + concatStringsSep "" (map (target: ''
    mkdir -p $out/${target}.wants
    ln -s ../${name} $out/${target}.wants/${name}
  '') units.${name}.wantedBy);

  files = if parameters.agent == null then { } else agentConfig.environment.etc;
  installFile = name: ''
    mkdir -p "$(dirname $out/etc/${name})"
    ln -s ${files.${name}.source} $out/etc/${name}
  '';

  etc = run "etc" { inherit (parameters) version; } ''
    mkdir -p $out/etc/systemd
    units=$out/etc/systemd/system
    mkdir $units
    (out=$units
    ${concatStringsSep "" (map installUnit (attrNames units))}
    )
    ${concatStringsSep "" (map installFile (attrNames files))}
    echo "$version" > $out/etc/version
  '';

  kernel = run "linux-${parameters.kernel}" { } ''
    mkdir -p $out/lib/modules
    echo "a kernel" > $out/bzImage
    echo "an initrd" > $out/initrd
  '';
in
run "nixos-system-${parameters.name}-${parameters.version}" {
  inherit etc kernel;
  inherit (parameters) version activate init switch;
  passAsFile = [ "activate" "init" "switch" ];
} ''
  install_script() {
    sed -e "s|@out@|$out|g" -e "s|@version@|$version|g" "$1" > "$2"
    chmod 755 "$2"
  }
  mkdir -p $out/bin
  printf %s "$version" > $out/nixos-version
  printf %s "${builtins.currentSystem}" > $out/system
  ln -s $etc/etc $out/etc
  ln -s $kernel/bzImage $out/kernel
  ln -s $kernel/initrd $out/initrd
  ln -s $kernel $out/kernel-modules
  install_script "$activatePath" $out/activate
  install_script "$initPath" $out/init
  install_script "$switchPath" $out/bin/switch-to-configuration
''
