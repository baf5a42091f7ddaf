//! The ways into and out of types that are a checked text: serde, `FromStr`, `Display`.

/// Gives types with `new(impl Into<String>) -> Result<Self, $error>` and one field, the text, all conversions,
/// which call nothing else to make one.
macro_rules! text_conversions {
    ($error:ty => $($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                Self::new(text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    )+};
}
pub(crate) use text_conversions;
