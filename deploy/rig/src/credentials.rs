//! Keys, certificates, tokens and kubeconfigs of one rig. All are files in one directory, made anew for each rig.

use std::fmt::Write;
use std::fs::Permissions;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

/// Who speaks to the API server. Everybody but the administrator is bound by RBAC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum User {
    /// May do everything (`system:masters`).
    Admin,
    /// A service account; the object itself need not exist.
    ServiceAccount {
        /// Namespace of the account.
        namespace: String,
        /// Name of the account.
        name: String,
    },
    /// Anybody else, with groups.
    Named {
        /// Name of the user.
        name: String,
        /// Groups beside `system:authenticated`.
        groups: Vec<String>,
    },
}

impl User {
    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::ServiceAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// As RBAC names them, with the groups that have to be said: those of a service account follow from its name.
    fn subject(&self) -> Option<(String, Vec<String>)> {
        match self {
            Self::Admin => None,
            Self::ServiceAccount { namespace, name } => Some((
                format!("system:serviceaccount:{namespace}:{name}"),
                Vec::new(),
            )),
            Self::Named { name, groups } => Some((name.clone(), groups.clone())),
        }
    }
}

/// The directory with all of them.
#[derive(Debug)]
pub(crate) struct Credentials {
    directory: PathBuf,
}

impl Credentials {
    /// Makes keys and certificates for an API server at these addresses.
    pub(crate) fn create(directory: &Path, server: &[IpAddr]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let here = Self {
            directory: directory.to_owned(),
        };
        let authority = Authority::new()?;
        here.write("ca.crt", &authority.certificate.pem())?;

        let mut names: Vec<String> = server.iter().map(ToString::to_string).collect();
        names.extend(
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned),
        );
        here.issue(
            &authority,
            "apiserver",
            names,
            ExtendedKeyUsagePurpose::ServerAuth,
            &[],
        )?;
        let masters = [(DnType::OrganizationName, "system:masters")];
        here.issue(
            &authority,
            "kubelet-client",
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
            &masters,
        )?;

        let accounts = KeyPair::generate().context("make a key")?;
        here.write("accounts.key", &accounts.serialize_pem())?;
        here.write("accounts.pub", &accounts.public_key_pem())?;
        Ok(here)
    }

    /// Those in a directory where they were made, or will be.
    pub(crate) fn open(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Path of a file in here.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes the table of static tokens: `(user, groups)`. The API server reads it once.
    pub(crate) fn write_tokens(&self, users: &[(String, &str)]) -> anyhow::Result<()> {
        let mut table = String::new();
        for (user, group) in users {
            let _ = writeln!(table, "{},{user},{user},{group}", random_word()?);
        }
        self.write("tokens", &table)
    }

    /// A kubeconfig with the token of a user in the table.
    pub(crate) fn with_token(&self, server: &str, user: &str) -> anyhow::Result<PathBuf> {
        let token = self.token(user)?;
        self.write_kubeconfig(&file_name(user), server, &json!({ "token": token }))
    }

    /// A kubeconfig for anybody: the administrator's token, and who it is used for.
    pub(crate) fn for_user(&self, server: &str, user: &User) -> anyhow::Result<PathBuf> {
        let Some((name, groups)) = user.subject() else {
            return self.with_token(server, ADMIN);
        };
        let mut who = json!({ "token": self.token(ADMIN)?, "as": name });
        if !groups.is_empty() {
            who["as-groups"] = json!(groups);
        }
        self.write_kubeconfig(&file_name(&name), server, &who)
    }

    fn token(&self, user: &str) -> anyhow::Result<String> {
        let path = self.path("tokens");
        let table =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut rows = table.lines().map(|line| line.split(','));
        rows.find_map(|mut row| {
            let token = row.next()?;
            (row.next()? == user).then(|| token.to_owned())
        })
        .with_context(|| format!("{user} has no token"))
    }

    fn write_kubeconfig(&self, name: &str, server: &str, user: &Value) -> anyhow::Result<PathBuf> {
        let cluster = json!({ "server": server, "certificate-authority": self.path("ca.crt") });
        // JSON is YAML, too.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "rig", "cluster": cluster }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "rig", "context": { "cluster": "rig", "user": "user" } }],
            "current-context": "rig",
        });
        let name = format!("{name}.kubeconfig");
        self.write(&name, &format!("{config:#}\n"))?;
        Ok(self.path(&name))
    }

    fn issue(
        &self,
        authority: &Authority,
        name: &str,
        alternatives: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        subject: &[(DnType, &str)],
    ) -> anyhow::Result<()> {
        let key = KeyPair::generate().context("make a key")?;
        let mut params = CertificateParams::new(alternatives).context("name a certificate")?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("rig-{name}"));
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &authority.issuer)
            .context("sign a certificate")?;
        self.write(&format!("{name}.crt"), &certificate.pem())?;
        self.write(&format!("{name}.key"), &key.serialize_pem())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        let write = || {
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

/// The administrator in the table of tokens.
pub(crate) const ADMIN: &str = "admin";

struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make a key")?;
        let mut params = CertificateParams::new(Vec::new()).context("name a certificate")?;
        params.distinguished_name.push(DnType::CommonName, "rig");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).context("sign a certificate")?;
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }
}

/// A client of the API server that a kubeconfig names.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).context("read a kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Client::try_from(config.context("read a kubeconfig")?).context("make a client")
}

/// A user's name as the name of a file.
fn file_name(user: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '-'
        }
    };
    user.chars().map(plain).collect()
}

fn random_word() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    source.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(crate::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_is_impersonated() {
        let directory = tempfile::tempdir().unwrap();
        let made = Credentials::create(directory.path(), &["127.0.0.1".parse().unwrap()]).unwrap();
        made.write_tokens(&[(ADMIN.to_owned(), "system:masters")])
            .unwrap();
        let agent = User::service_account("bowline-system", "bowline-agent");
        let path = made.for_user("https://127.0.0.1:6443", &agent).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let user = &config["users"][0]["user"];
        assert_eq!(
            user["as"],
            "system:serviceaccount:bowline-system:bowline-agent"
        );
        assert_eq!(user["token"], made.token(ADMIN).unwrap());
    }
}
