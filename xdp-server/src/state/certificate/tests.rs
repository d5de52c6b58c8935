use std::os::unix::fs::PermissionsExt;

use super::*;

/// 2025-01-01 00:00 UTC.
fn new_year() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_735_689_600).unwrap()
}

fn fresh() -> (tempfile::TempDir, StateDir) {
    let parent = tempfile::tempdir().unwrap();
    let state = StateDir::open(Some(&parent.path().join("state"))).unwrap();
    (parent, state)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn obtain(state: &StateDir, addresses: &[IpAddr], now: OffsetDateTime) -> Identity {
    Identity::obtain(None, state, addresses, now).unwrap()
}

/// Writes a certificate and its key, valid for a day from `new_year` on, as an administrator would have them.
fn given(dir: &Path, name: &str) -> CertificateFiles {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["canvas.example".to_owned()]).unwrap();
    params.not_before = new_year();
    params.not_after = new_year() + Duration::days(1);
    let files = CertificateFiles {
        cert: dir.join(format!("{name}-cert.pem")),
        key: dir.join(format!("{name}-key.pem")),
    };
    fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    files
}

fn load_text(files: &CertificateFiles) -> String {
    Identity::given(files, new_year()).unwrap_err().to_string()
}

#[test]
fn the_self_signed_certificate_is_what_browsers_pin() {
    let (_parent, state) = fresh();
    let identity =
        obtain(&state, &[address("192.0.2.1"), address("2001:db8::1"), address("127.0.0.1")], new_year());

    let pem = fs::read(&identity.cert_pem_path).unwrap();
    let pem = Pem::iter_from_buffer(&pem).next().unwrap().unwrap();
    assert_eq!(identity.sha256, <[u8; 32]>::from(Sha256::digest(&pem.contents)));
    let certificate = pem.parse_x509().unwrap();

    let algorithm = &certificate.public_key().algorithm;
    assert_eq!(algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1", "EC");
    let curve = algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
    assert_eq!(curve.to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    assert_eq!(
        certificate.signature_algorithm.algorithm.to_id_string(),
        "1.2.840.10045.4.3.2",
        "with SHA-256"
    );

    let validity = certificate.validity();
    let (from, to) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    assert_eq!(to - from, Duration::days(13));
    assert!(from < new_year() && new_year() - from <= Duration::hours(1));
    assert_eq!(to, identity.not_after);

    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    let dns: Vec<_> = names
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    assert!(dns.contains(&"localhost"), "{dns:?}");
    assert!(host_name().is_none_or(|host| dns.contains(&host.as_str())), "{dns:?}");
    let expected = ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"].map(address);
    assert_eq!(addresses_named_by(&certificate), expected, "each once");
    assert!(!certificate.is_ca());
    assert!(certificate.extended_key_usage().unwrap().unwrap().value.server_auth);

    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&identity.key_pem_path), mode(&identity.cert_pem_path)), (0o600, 0o600));
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn it_is_kept_while_it_lasts_and_renewed_with_a_reason() {
    let (_parent, state) = fresh();
    let here = [address("192.0.2.1")];
    let first = obtain(&state, &here, new_year());
    assert!(first.self_signed && first.notes == ["made a self-signed certificate"]);
    let kept = obtain(&state, &here, first.not_after - RENEW_BEFORE);
    assert_eq!((kept.sha256, kept.notes), (first.sha256, vec![]));

    let mut last = first;
    for (now, addresses, reason) in [
        (last.not_after - Duration::hours(23), &here[..], "less than a day"),
        (new_year() + Duration::days(100), &here, "expired"),
        (new_year(), &here, "clock"),
        (new_year(), &[address("192.0.2.1"), address("192.0.2.9")], "192.0.2.9"),
    ] {
        let renewed = obtain(&state, addresses, now);
        assert!(renewed.notes[0].contains(reason), "{:?}", renewed.notes);
        assert_ne!(renewed.sha256, last.sha256);
        assert_eq!(renewed.not_after, now - CLOCK_SLACK + VALIDITY);
        last = renewed;
    }
    // Fewer addresses than it names are no reason.
    assert_eq!(obtain(&state, &here, new_year()).sha256, last.sha256);
}

#[test]
fn what_a_crash_leaves_is_replaced() {
    let (_parent, state) = fresh();
    let first = obtain(&state, &[], new_year());
    // Only the key had been replaced.
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    files::replace(&first.key_pem_path, other.serialize_pem().as_bytes()).unwrap();
    let second = obtain(&state, &[], new_year());
    assert_ne!(second.sha256, first.sha256);
    assert!(second.notes[0].contains("incomplete or broken"), "{:?}", second.notes);
    // Only the key was ever written.
    fs::remove_file(&second.cert_pem_path).unwrap();
    assert!(!obtain(&state, &[], new_year()).notes.is_empty());
    assert!(obtain(&state, &[], new_year()).notes.is_empty());
}

#[test]
fn a_self_signed_key_that_others_can_read_is_refused() {
    let (_parent, state) = fresh();
    let identity = obtain(&state, &[], new_year());
    fs::set_permissions(&identity.key_pem_path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Identity::obtain(None, &state, &[], new_year()).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn a_given_pair_is_used_where_it_lies() {
    let (parent, state) = fresh();
    let files = given(parent.path(), "a");
    let at = |now| Identity::obtain(Some(&files), &state, &[], now).unwrap();
    let identity = at(new_year() + Duration::hours(1));
    assert_eq!((&identity.cert_pem_path, &identity.key_pem_path), (&files.cert, &files.key));
    assert!(!identity.self_signed && identity.notes.is_empty(), "{identity:?}");
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "the state directory has no part in it");

    assert!(at(new_year() + Duration::days(2)).notes[0].contains("has expired"));
    assert!(at(new_year() - Duration::days(2)).notes[0].contains("not valid yet"));
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(at(new_year()).notes[0].contains("chmod o="));
}

#[test]
fn a_chain_is_known_by_its_leaf_and_text_before_it_is_skipped() {
    let parent = tempfile::tempdir().unwrap();
    let (leaf, issuer) = (given(parent.path(), "leaf"), given(parent.path(), "issuer"));
    let alone = Identity::given(&leaf, new_year()).unwrap();
    let chain = format!(
        "Bag Attributes\n  name: x\n{}{}",
        fs::read_to_string(&leaf.cert).unwrap(),
        fs::read_to_string(&issuer.cert).unwrap()
    );
    fs::write(&leaf.cert, chain).unwrap();
    assert_eq!(Identity::given(&leaf, new_year()).unwrap(), alone);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let (a, b) = (given(parent.path(), "a"), given(parent.path(), "b"));
    let text = load_text(&CertificateFiles { cert: a.cert, key: b.key });
    assert!(text.starts_with("bad certificate: ") && text.contains("does not belong to"), "{text}");
    assert!(text.contains("a-cert.pem") && text.contains("b-key.pem"), "{text}");
}

#[test]
fn every_way_to_be_no_certificate_has_its_message() {
    let parent = tempfile::tempdir().unwrap();
    let files = given(parent.path(), "x");
    let good = fs::read_to_string(&files.cert).unwrap();
    let key = fs::read_to_string(&files.key).unwrap();
    let begin = "-----BEGIN CERTIFICATE-----\n";
    let end = "-----END CERTIFICATE-----\n";
    for (content, expected) in [
        (String::new(), "no PEM certificate"),
        ("\u{1}\u{2} DER or whatever".to_owned(), "openssl x509 -inform der"),
        (key.clone(), "no PEM certificate"),
        (format!("{begin}*** no base64 ***\n{end}"), "is broken"),
        (format!("{begin}MAMCAQE=\n{end}"), "is broken"),
        (good[..good.len() / 2].to_owned(), "is broken"),
    ] {
        fs::write(&files.cert, &content).unwrap();
        let text = load_text(&files);
        assert!(text.starts_with("bad certificate: ") && text.contains(expected), "{content}: {text}");
    }
    fs::write(&files.cert, &good).unwrap();

    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let pkcs1 = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n";
    let broken = "-----BEGIN PRIVATE KEY-----\nMAMCAQE=\n-----END PRIVATE KEY-----\n";
    for (content, expected) in [
        ("", "no PEM key"),
        (good.as_str(), "no PEM key"),
        (encrypted, "openssl pkey -in"),
        (pkcs1, "openssl pkey -in"),
        (broken, "the TLS library refuses"),
    ] {
        fs::write(&files.key, content).unwrap();
        let text = load_text(&files);
        assert!(text.starts_with("bad certificate: ") && text.contains(expected), "{content}: {text}");
    }
    fs::write(&files.key, &key).unwrap();
    Identity::given(&files, new_year()).unwrap();

    let missing = |cert: &str, key: &str| load_text(&CertificateFiles { cert: cert.into(), key: key.into() });
    assert!(missing("/none/cert", "/none/key").contains("cannot read /none/cert: No such file"));
    assert!(missing(files.cert.to_str().unwrap(), "/none/key").contains("check --key"));
}
