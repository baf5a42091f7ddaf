//! Fetching and plain profiles with the machine's own Nix, 2.26: newer messages, the same reasons.

use hoist_protocol::{Kind, Reason, State, StorePath};
use hoist_tests::builder::Cache;
use hoist_tests::closure::Closure;
use hoist_tests::machine::PLAIN_PROFILE;
use hoist_tests::nspawn::{Booted, booted_scenario};

#[test]
fn a_plain_profile_is_set_and_what_cannot_be_fetched_is_named_by_its_reason() {
    booted_scenario(|world| {
        let machine = Booted::running(world, "web-1")?;
        let nix = machine.run("nix", &["--version"])?.success()?;
        assert!(nix.contains(" 2.26."), "{nix}");
        let carry_out = |path: &StorePath| {
            let mut forge = world.forge(&machine, path)?;
            forge.target.kind = Kind::Profile;
            let id = world.publish(&forge)?;
            world
                .watch()
                .wait_status(machine.name(), "it has ended", |status| {
                    status.id == Some(id) && status.state.is_final()
                })
        };

        let one = world.push(&Closure::profile("tool", "1"))?;
        let status = carry_out(&one)?;
        assert_eq!(status.state, State::Succeeded, "{}", status.message);
        assert_eq!(machine.profile(PLAIN_PROFILE)?.as_ref(), Some(&one));
        let ran = machine
            .run(&format!("{PLAIN_PROFILE}/bin/tool"), &[])?
            .success()?;
        assert_eq!(ran.trim(), "1");

        let never_pushed = world.builder.build(&Closure::profile("tool", "2"))?;
        let status = carry_out(&never_pushed)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(
            status.reason,
            Some(Reason::MissingPath),
            "{}",
            status.message
        );

        let other = Cache::create(&world.site().dir().join("other"), "other-1", &world.builder)?;
        let foreign = world.builder.build(&Closure::profile("tool", "3"))?;
        world.builder.push(&foreign, &other)?;
        let conf = world
            .cache
            .nix_conf()?
            .replace(&world.cache.server.url()?, &other.server.url()?);
        machine.write("/etc/nix/nix.conf", &conf)?;
        let status = carry_out(&foreign)?;
        assert_eq!(status.state, State::Failed, "{}", status.message);
        assert_eq!(
            status.reason,
            Some(Reason::UntrustedPath),
            "{}",
            status.message
        );
        assert_eq!(machine.profile(PLAIN_PROFILE)?, Some(one));
        Ok(())
    });
}
