# What a machine of a flake shall run: as it stands in a spec, and what has to be built for it.
value:
let
  closure =
    value:
    if value ? config.system.build.toplevel then
      value.config.system.build.toplevel
    else
      value.activationPackage or value;
  isEntry = value ? path && !(value ? outPath || value ? config || value ? activationPackage);
  json = builtins.toJSON (
    if isEntry then value // { path = closure value.path; } else closure value
  );
in
{
  json = builtins.unsafeDiscardStringContext json;
  needs = builtins.getContext json;
}
