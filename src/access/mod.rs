//! Who may call what: callers, what they show, and what each may do.
//!
//! A caller shows a bearer token or a client certificate. Tokens are kept as SHA-256 alone and compared in constant
//! time; nothing here can print one. Credentials fail closed: see [`AccessStore`].

mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

pub use store::AccessStore;

/// What a method needs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Decisions and signals.
    Route,
    /// Reports of what came of decisions.
    Report,
    /// The policy in force, and checks and simulations of others.
    PolicyRead,
    /// Changes of the policy.
    PolicyWrite,
}

/// Somebody who may call.
#[derive(Debug)]
pub struct Caller {
    name: String,
    rights: Vec<Right>,
    /// `None`: any tenant.
    tenants: Option<Vec<String>>,
}

/// Callers and what they show.
#[derive(Debug, Default)]
pub struct Access {
    tokens: Vec<(TokenDigest, Arc<Caller>)>,
    certificates: BTreeMap<String, Arc<Caller>>,
    /// Of all bytes it was read from.
    fingerprint: [u8; 32],
}

/// What a call shows of who makes it.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The value of its `authorization` header.
    pub authorization: Option<&'a [u8]>,
    /// DNS and URI names in its verified client certificate.
    pub certificate_names: &'a [String],
}

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// It shows nothing, or nothing that is known.
    Unknown,
    /// Its caller lacks the right.
    Right(Right),
}

/// An access file cannot be used; the operator's fault. Says nothing of a token.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The access file is not valid TOML or has a field that does not exist.
    #[error("{} is not a valid access file: line {line}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, from 1. What stands there is not repeated: it may be a token in the wrong place.
        line: usize,
    },
    /// A caller is not usable.
    #[error("caller {name:?}: {problem}")]
    Caller {
        /// Which.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

struct TokenDigest([u8; 32]);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    caller: Vec<CallerSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerSpec {
    name: String,
    #[serde(default)]
    token_files: Vec<PathBuf>,
    #[serde(default)]
    certificate_names: Vec<String>,
    rights: Vec<Right>,
    tenants: Option<Vec<String>>,
}

/// A shorter token could be guessed.
const MIN_TOKEN_BYTES: usize = 16;

// === impl Access ===

impl Access {
    /// Reads an access file and the token files it names, which are looked up beside it.
    ///
    /// # Errors
    /// Says which file or caller cannot be used.
    pub fn load(path: &Path) -> Result<Self, AccessError> {
        Self::parse(&read(path)?, path)
    }

    /// Parses the text of the access file at `path`.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, AccessError> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let upto = error.span().and_then(|span| text.get(..span.start));
            AccessError::Syntax { path: path.to_owned(), line: upto.map_or(0, |upto| upto.matches('\n').count()) + 1 }
        })?;
        let mut access = Self::default();
        let mut hash = Sha256::new_with_prefix(Sha256::digest(text));
        for spec in document.caller {
            access.add(spec, path.parent().unwrap_or(Path::new("")), &mut hash)?;
        }
        access.fingerprint = hash.finalize().into();
        Ok(access)
    }

    fn add(&mut self, spec: CallerSpec, beside: &Path, hash: &mut Sha256) -> Result<(), AccessError> {
        let CallerSpec { name, token_files, certificate_names, rights, tenants } = spec;
        let fault = |problem: String| Err(AccessError::Caller { name: name.clone(), problem });
        if token_files.is_empty() && certificate_names.is_empty() {
            return fault("has neither token_files nor certificate_names".into());
        }
        if tenants.as_ref().is_some_and(|tenants| tenants.iter().any(String::is_empty)) {
            return fault("an empty tenant; leave tenants out to allow any".into());
        }
        let caller = Arc::new(Caller { name: name.clone(), rights, tenants });
        for file in token_files {
            let path = beside.join(&file);
            let text = read(&path)?;
            hash.update(Sha256::digest(&text));
            for (index, token) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
                if token.len() < MIN_TOKEN_BYTES {
                    let place = format!("{}:{}", path.display(), index + 1);
                    return fault(format!("{place}: a token has at least {MIN_TOKEN_BYTES} bytes"));
                }
                let digest = TokenDigest::of(token.as_bytes());
                if self.tokens.iter().any(|(known, _)| known.is(&digest).into()) {
                    return fault(format!("{}:{}: a token that is listed before", path.display(), index + 1));
                }
                self.tokens.push((digest, Arc::clone(&caller)));
            }
        }
        for certificate_name in certificate_names {
            if self.certificates.insert(certificate_name.clone(), Arc::clone(&caller)).is_some() {
                return fault(format!("certificate name {certificate_name:?} is listed before"));
            }
        }
        Ok(())
    }

    /// Who calls, if it may call a method that needs `right`; `None`: any caller may.
    ///
    /// # Errors
    /// When nobody known calls, or one who lacks the right.
    pub fn authorise(&self, shown: Shown<'_>, right: Option<Right>) -> Result<Arc<Caller>, Denied> {
        let caller = match shown.authorization {
            // A token that is not known is not made good by a certificate: the caller meant to be somebody else.
            Some(header) => self.by_token(header),
            None => shown.certificate_names.iter().find_map(|name| self.certificates.get(name)),
        };
        let caller = caller.ok_or(Denied::Unknown)?;
        match right {
            Some(right) if !caller.has(right) => Err(Denied::Right(right)),
            _ => Ok(Arc::clone(caller)),
        }
    }

    fn by_token(&self, header: &[u8]) -> Option<&Arc<Caller>> {
        let (scheme, token) = header.split_at_checked("Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return None;
        }
        let digest = TokenDigest::of(token.trim_ascii());
        // Every token is compared, whatever matched, so that time tells nothing.
        let mut found = None;
        for (known, caller) in &self.tokens {
            if known.is(&digest).into() {
                found = Some(caller);
            }
        }
        found
    }

    /// How many tokens and certificate names are known.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.certificates.len()
    }

    /// Whether nobody may call.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Caller ===

impl Caller {
    /// For logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has `right`.
    pub fn has(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }

    /// The only tenants it may call for; `None`: any.
    pub fn tenants(&self) -> Option<&[String]> {
        self.tenants.as_deref()
    }

    /// The tenant that a call of this caller is for, given the one it names: its only one where it names none.
    /// `None`: it may not call for that one.
    pub fn tenant(&self, named: String) -> Option<String> {
        match self.tenants.as_deref() {
            None => Some(named),
            Some([only]) if named.is_empty() => Some(only.clone()),
            Some(tenants) => tenants.contains(&named).then_some(named),
        }
    }
}

// === impl Right ===

impl Right {
    /// As access files write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Report => "report",
            Self::PolicyRead => "policy_read",
            Self::PolicyWrite => "policy_write",
        }
    }
}

// === impl TokenDigest ===

impl TokenDigest {
    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn is(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// A digest of a weak token is as good as the token to who can guess.
impl std::fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

fn read(path: &Path) -> Result<String, AccessError> {
    std::fs::read_to_string(path).map_err(|source| AccessError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "canary-token-of-the-shop";

    fn load(document: &str) -> Result<Access, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shop"), format!("{TOKEN}\nanother-token-of-the-shop\n")).unwrap();
        std::fs::write(dir.path().join("short"), "secret").unwrap();
        std::fs::write(dir.path().join("access.toml"), document).unwrap();
        Access::load(&dir.path().join("access.toml")).map_err(|error| error.to_string())
    }

    const SHOP: &str = "[[caller]]\nname = 'shop'\ntoken_files = ['shop']\nrights = ['route', 'report']\ntenants = ['shop']\n\
                        [[caller]]\nname = 'ops'\ncertificate_names = ['spiffe://x/ops']\nrights = ['policy_read']\n";

    fn token(value: &str) -> Vec<u8> {
        format!("Bearer {value}").into_bytes()
    }

    #[test]
    fn callers_are_told_by_what_they_show() {
        let access = load(SHOP).unwrap();
        let name = |authorization: Option<&[u8]>, names: &[&str], right| {
            let certificate_names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let shown = Shown { authorization, certificate_names: &certificate_names };
            access.authorise(shown, right).map(|caller| caller.name().to_owned())
        };
        assert_eq!(name(Some(&token(TOKEN)), &[], Some(Right::Route)), Ok("shop".into()));
        assert_eq!(name(Some(b"bearer another-token-of-the-shop "), &[], Some(Right::Report)), Ok("shop".into()));
        assert_eq!(name(Some(&token(TOKEN)), &[], Some(Right::PolicyRead)), Err(Denied::Right(Right::PolicyRead)));
        assert_eq!(name(None, &["a.example", "spiffe://x/ops"], Some(Right::PolicyRead)), Ok("ops".into()));
        assert_eq!(name(None, &["spiffe://x/ops"], None), Ok("ops".into()));
        assert_eq!(name(None, &["spiffe://x/ops"], Some(Right::PolicyWrite)), Err(Denied::Right(Right::PolicyWrite)));
        let long = token(&"x".repeat(1 << 20));
        for wrong in [b"".as_slice(), b"Bearer", b"Bearer ", TOKEN.as_bytes(), b"Basic abc", &long, b"Bearer \xff\xfe"]
        {
            assert_eq!(name(Some(wrong), &["spiffe://x/ops"], None), Err(Denied::Unknown), "{} bytes", wrong.len());
        }
        assert_eq!(name(None, &["spiffe://x/op", ""], None), Err(Denied::Unknown));
        assert!(!format!("{access:?}").contains("canary"));
    }

    #[test]
    fn tenants_are_bound_to_callers() {
        let caller = |tenants: Option<&[&str]>| Caller {
            name: "c".into(),
            rights: vec![],
            tenants: tenants.map(|tenants| tenants.iter().map(|tenant| (*tenant).to_owned()).collect()),
        };
        let tenant = |tenants, named: &str| caller(tenants).tenant(named.to_owned());
        assert_eq!(tenant(None, "any"), Some("any".into()));
        assert_eq!(tenant(None, ""), Some(String::new()));
        assert_eq!(tenant(Some(&["a"]), ""), Some("a".into()), "its only one");
        assert_eq!(tenant(Some(&["a", "b"]), "b"), Some("b".into()));
        assert_eq!(tenant(Some(&["a", "b"]), ""), None, "it has to say which");
        assert_eq!(tenant(Some(&["a"]), "b"), None);
        assert_eq!(tenant(Some(&[]), ""), None);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_no_token_repeated() {
        for (document, part) in [
            ("[[caller]]\nname = 'x'\nrights = []", "has neither"),
            ("[[caller]]\nname = 'x'\nrights = ['fly']\ntoken_files = ['shop']", "line 3"),
            ("[[caller]]\nname = 'x'\nrights = []\ntoken_files = ['none']", "cannot read"),
            ("[[caller]]\nname = 'x'\nrights = []\ntoken_files = ['short']", "short:1: a token has at least 16"),
            ("[[caller]]\nname = 'x'\nrights = []\ntoken_files = ['shop', 'shop']", "listed before"),
            ("[[caller]]\nname = 'x'\nrights = []\ncertificate_names = ['a', 'a']", "listed before"),
            ("[[caller]]\nname = 'x'\nrights = []\ncertificate_names = ['a']\ntenants = ['']", "empty tenant"),
            ("[[caller]]\nname = 'x'\ntoken = 'canary-token'\nrights = []", "line 3"),
        ] {
            let error = load(document).unwrap_err();
            assert!(error.contains(part) && !error.contains("canary") && !error.contains("secret"), "{error}");
        }
        assert!(load("").unwrap().is_empty(), "that nobody may call can be said");
        assert_eq!(load(SHOP).unwrap().len(), 3);
    }
}
