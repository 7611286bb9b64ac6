//! Mails through a real mail server that wants STARTTLS and a login, and what Python's own parser makes of them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use notification_subscribers::delivery::{DeliverySettings, EmailSettings, HttpTrust, Login, Tls};
use notification_subscribers::operations::SendEmailOp;
use serde_json::Value;
use store::Secret;
use subscription_engine::Status;
use testkit::{both, program_or_left_out};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::delivery::{ask_mail, at, mail, run, seconds, system};
use crate::effects::ledger;
use crate::engine::status;

const SERVER: &str = include_str!("delivery_real_server.py");
/// Debian's package goes to Debian's Python.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];
const CERTIFICATE: &str = "[req]\ndistinguished_name = name\nx509_extensions = extensions\nprompt = no\n\
    [name]\nCN = localhost\n[extensions]\nsubjectAltName = DNS:localhost\nbasicConstraints = critical, CA:FALSE\n";

/// The server; it ends with this.
struct RealServer {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    folder: tempfile::TempDir,
}

impl RealServer {
    async fn start(python: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("request"), CERTIFICATE).unwrap();
        std::fs::write(file("server.py"), SERVER).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", "request"])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(folder.path())
            .output()
            .await
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut process = Command::new(python)
            .args([file("server.py"), file("cert.pem"), file("key.pem")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Self { process, lines, port: 0, folder };
        server.port = server.next().await["port"].as_u64().unwrap().try_into().unwrap();
        server
    }

    /// What it says next.
    async fn next(&mut self) -> Value {
        let line = self.lines.next_line().await.unwrap().expect("the server is there");
        serde_json::from_str(&line).unwrap()
    }

    /// Mails through it, with this password, and its certificate believed or not.
    fn settings(&self, password: &str, believed: bool) -> DeliverySettings {
        let ca = believed.then(|| std::fs::read(self.folder.path().join("cert.pem")).unwrap());
        let login = Login { user: "herald".into(), password: Secret::new(password) };
        let email = EmailSettings::new("localhost", "Hérald <herald@example.com>").unwrap();
        let email =
            email.with_tls(Tls::StartTls, Some(self.port)).with_ca(ca.clone()).with_login(login).unwrap();
        DeliverySettings { email: Some(email), trust: HttpTrust { ca }, ..DeliverySettings::default() }
    }
}

/// A Python that has the server, or a loud word.
fn python(test_name: &str) -> Option<PathBuf> {
    let has_it = |python: &&str| {
        let check =
            std::process::Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status();
        check.is_ok_and(|status| status.success())
    };
    let found = PYTHONS.iter().find(|python| has_it(python)).map(PathBuf::from);
    program_or_left_out(test_name, "a real mail server: apt-get install python3-aiosmtpd openssl", found)
}

both! {
    /// N-22, N-27: encrypted, logged in, and read by somebody else's parser: what was written is what arrives.
    async fn n27_a_real_server_takes_our_mails(database: TestDatabase) {
        let Some(python) = python("n27_a_real_server_takes_our_mails") else { return };
        let mut server = RealServer::start(&python).await;
        let store = database.store_with_manual_clock().await;

        let engine = system(&store, &server.settings("the password", false)).await;
        let text = "Grüße 💌\n.\n..\nvon Herald".to_owned();
        let subject = "Grüße: Hi\r\nBcc: x@evil.test ".to_owned() + &"lang ".repeat(60);
        let operation = SendEmailOp { subject, text: text.clone(), ..mail("test@example.com") };
        ask_mail(&store, &operation).await;
        run(&engine).await;
        assert_eq!(status(&engine, "email_delivery").await, Status::Error);
        let why = ledger(&engine).await.remove(0).why;
        assert!(why.to_lowercase().contains("certificate"), "a certificate of nobody known is not believed: {why}");

        let engine = system(&store, &server.settings("another password", true)).await;
        at(&engine, seconds(3_600)).await;
        let why = ledger(&engine).await.remove(0).why;
        assert!(why.contains("535 5.7.8"), "{why}");

        let engine = system(&store, &server.settings("the password", true)).await;
        at(&engine, seconds(7_200)).await;
        let received = server.next().await;
        assert_eq!(status(&engine, "email_delivery").await, Status::Active);
        assert_eq!((&received["tls"], &received["defects"]), (&true.into(), &Value::Array(Vec::new())));
        assert_eq!((&received["to"][0], received["text"].as_str()), (&"test@example.com".into(), Some(&*text)));
        let id = operation.operation_id;
        assert_eq!(received["from"], format!("herald+{}@example.com", id.simple()));
        let headers = &received["headers"];
        assert_eq!(headers["Message-ID"], format!("<{id}@example.com>"));
        assert_eq!(headers["From"], "Hérald <herald@example.com>");
        assert_eq!((&headers["Auto-Submitted"], &headers["MIME-Version"]), (&"auto-generated".into(), &"1.0".into()));
        assert!(headers["Subject"].as_str().unwrap().starts_with("Grüße: Hi Bcc: x@evil.test lang lang"), "{headers}");
        assert_eq!(received["count"], headers.as_object().unwrap().len(), "no header twice: {headers}");
        assert!(headers.get("Bcc").is_none(), "{headers}");
        drop(server.process.stdin.take());
    }
}
