# A home-manager generation for the user of a booted machine: the agent's unit as nix/modules/home-manager.nix makes it,
# `web.service`, and the script that activates them.
{ spec, repository }:
let
  inherit (builtins) attrNames concatStringsSep map;
  parameters = builtins.fromJSON spec;
  common = import (repository + "/tests/src/nspawn/common.nix") {
    inherit repository;
    inherit (parameters) agent;
  };
  inherit (common) agentPackage quote run section;

  agentConfig =
    if parameters.agent == null then
      {
        home.packages = [ ];
        xdg.configFile = { };
        systemd.user.services = { };
      }
    else
      common.agentConfig "home-manager.nix" { nix.package = "/packages/nix-bin"; };

  services = agentConfig.systemd.user.services // {
    web = {
      Unit.Description = "Web server";
      # Deployments follow each other faster here than systemd lets a service start.
      Unit.StartLimitIntervalSec = 0;
      Service = {
        Environment = "VERSION=${parameters.version}";
        ExecStart = "/bin/sleep infinity";
      };
      Install.WantedBy = [ "default.target" ];
    };
  };
  # home-manager, modules/systemd.nix: a section of each set.
  text = service: concatStringsSep "\n" (map (name: "[${name}]\n" + section service.${name}) (attrNames service));
  installService = name: ''
    printf '%s' ${quote (text services.${name})} > $units/${name}.service
  '' + concatStringsSep "" (map (target: ''
    mkdir -p $units/${target}.wants
    ln -s $units/${name}.service $units/${target}.wants/${name}.service
  '') services.${name}.Install.WantedBy);
  installConfig = name: ''
    mkdir -p "$(dirname "$out/.config/${name}")"
    ln -s ${agentConfig.xdg.configFile.${name}.source} $out/.config/${name}
  '';

  files = run "home-manager-files" { } ''
    units=$out/.config/systemd/user
    mkdir -p $units
    ${concatStringsSep "" (map installService (attrNames services))}
    ${concatStringsSep "" (map installConfig (attrNames agentConfig.xdg.configFile))}
  '';
in
run "home-manager-generation" {
  inherit files;
  inherit (parameters) version activate genVersion;
  passAsFile = [ "activate" ];
} ''
  mkdir -p $out/home-path/bin
  echo 25.05 > $out/hm-version
  [ -z "$genVersion" ] || echo "$genVersion" > $out/gen-version
  ln -s $files $out/home-files
  ${concatStringsSep "" (map (package: "ln -s ${package}/bin/* $out/home-path/bin/\n") agentConfig.home.packages)}
  sed -e "s|@out@|$out|g" -e "s|@version@|$version|g" "$activatePath" > $out/activate
  chmod 755 $out/activate
''
