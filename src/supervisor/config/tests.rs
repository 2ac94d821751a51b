//! Each way a configuration can be wrong, with the line and key that the error must name.

use super::*;
use crate::audit::record::RetentionPreset;

const SMALLEST: &str = "[[model]]\nfile = \"m.gguf\"\n";

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(Path::new("/c/cloister.toml"), text, true, None)
}

/// Line, key and message of the refusal of `text`.
fn refused(text: &str) -> (usize, String, String) {
    let error = parse(text).unwrap_err();
    (error.line, error.key.clone(), error.to_string())
}

fn refuses(text: &str, line: usize, key: &str, says: &str) {
    let (at, name, message) = refused(text);
    assert_eq!((at, name.as_str()), (line, key), "{message}");
    assert!(message.contains(says), "{message}");
    assert!(message.starts_with("/c/cloister.toml"), "{message}");
}

#[test]
fn the_smallest_file_has_working_defaults() {
    let config = parse(SMALLEST).unwrap();
    assert_eq!(config.profile, Profile::Full);
    assert_eq!(config.listen, [Listen::Tcp(([127, 0, 0, 1], 8443).into())]);
    assert_eq!(config.models[0].name, "m");
    assert_eq!(config.models[0].file, Path::new("/c/m.gguf"));
    assert_eq!(config.models[0].signature, Path::new("/c/m.gguf.sig"));
    assert!(!config.models[0].is_encrypted() && !config.models[0].allow_unsigned);
    assert_eq!(config.keys.trust_folder, Path::new("/c/trust"));
    assert_eq!(config.audit_folder, Path::new("/var/lib/cloister/audit"));
    assert_eq!(config.tokens_file, Path::new("/c/tokens.toml"));
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn the_commented_default_file_is_a_configuration() {
    let text = include_str!("../../../systemd/cloister.toml");
    let config = parse(text).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.worker, Worker::default());
    assert_eq!(config.users, Users::default());
    // Every commented key is a known key with a right value.
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#! ").unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(uncommented, text);
    let config = parse(&uncommented).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.worker, Worker::default());
    assert_eq!(config.users, Users::default());
}

#[test]
fn an_erasure_needs_as_many_users_as_may_ask() {
    let audit = |text: &str| format!("{SMALLEST}[audit]\n{text}\n");
    let config = parse(&audit("")).unwrap();
    assert_eq!(config.erasure, Erasure { confirmations: 1, operators: Vec::new() });
    assert_eq!(config.keys.wrapping, Path::new("/var/lib/cloister/wrapping.key"));
    let two = audit("erase_confirmations = 2\nerase_operators = [1001, 1000, 1001]");
    let want = Erasure { confirmations: 2, operators: vec![1000, 1001] };
    assert_eq!(parse(&two).unwrap().erasure, want);
    let key = "audit.erase_operators";
    refuses(&audit("erase_confirmations = 2\nerase_operators = [0]"), 5, key, "2 users must ask");
    refuses(&audit("erase_confirmations = 2"), 0, key, "2 users must ask");
    let key = "audit.erase_confirmations";
    refuses(&audit("erase_confirmations = 0"), 4, key, "from 1 to 8");
    refuses(&audit("erase_confirmations = 9"), 4, key, "from 1 to 8");
}

#[test]
fn encrypted_models_and_unix_sockets_are_taken() {
    let text = "[server]\nlisten = [\"unix:run/s\", \"[::1]:1\"]\n\
                [[model]]\nfile = \"/m/a.gguf.age\"\nname = \"org/a:1\"\n\
                [[model]]\nfile = \"b.gguf\"\nsignature = \"b.sig\"\nallow_unsigned = true\n";
    let config = parse(text).unwrap();
    assert_eq!(config.listen[0], Listen::Unix("/c/run/s".into()));
    assert_eq!(config.models[0].signature, Path::new("/m/a.gguf.sig"));
    assert!(config.models[0].is_encrypted());
    assert_eq!(config.models[1].signature, Path::new("/c/b.sig"));
    assert!(config.models[1].allow_unsigned);
}

#[test]
fn unknown_keys_and_wrong_types_name_their_line() {
    refuses("\n[server]\nlisten_on = []\n", 3, "listen_on", "unknown field");
    refuses("[sever]\n", 1, "", "unknown field");
    refuses("[limits]\nrequests_max = \"many\"\n", 2, "requests_max", "invalid type");
    refuses("[limits]\nrequests_max = 70000\n", 2, "requests_max", "invalid value");
    refuses("[server\n", 1, "", "unclosed");
    let node = "a node's number, \"auto\" or \"any\"";
    refuses("[worker]\nnuma_node = \"two\"\n", 2, "numa_node", node);
    refuses("[worker]\nnuma_node = -1\n", 2, "numa_node", node);
    refuses("[worker]\nnuma_node = 65536\n", 2, "numa_node", node);
    refuses("[worker]\nlifetime = \"day\"\n", 2, "lifetime", "`model` or `request`");
    refuses("[sandbox]\nswap = \"no\"\n", 2, "swap", "one of `tell`, `refuse`, `lock`");
    refuses("[worker]\nactivations = \"int4\"\n", 2, "activations", "unknown variant");
    refuses("[worker]\nthreads = 1\nkv = \"q4_0\"\n", 3, "kv", "`f16` or `q8_0`");
    refuses("profile = \"best\"\n", 1, "profile", "unknown variant");
}

#[test]
fn models_are_checked() {
    refuses("", 0, "model", "add a [[model]]");
    refuses("[[model]]\nname = \"x\"\n", 1, "", "missing field `file`");
    refuses("[[model]]\nfile = \"m.bin\"\n", 2, "model.file", ".gguf");
    refuses("[[model]]\nfile = \"m.gguf\"\nname = \"a b\"\n", 3, "model.name", "letters");
    refuses("[[model]]\nfile = \"m.gguf\"\nname = \"\"\n", 3, "model.name", "letters");
    let twice = format!("{SMALLEST}[[model]]\nname = \"m\"\nfile = \"n.gguf\"\n");
    refuses(&twice, 4, "model.name", "rename one");
    let many: String = (0..17).map(|i| format!("[[model]]\nfile = \"{i}.gguf\"\n")).collect();
    refuses(&many, 33, "model", "more than 16");
}

#[test]
fn layers_go_to_a_card_by_number_all_or_as_many_as_fit() {
    let layers = |text: &str| {
        let config = parse(&format!("{SMALLEST}{text}\n")).unwrap();
        (config.models[0].gpu_layers, config.models[0].gpu_devices.numbers().to_vec())
    };
    assert_eq!(layers(""), (None, vec![0]));
    assert_eq!(layers("gpu_layers = 0\ngpu_device = 3"), (None, vec![3]));
    assert_eq!(layers("gpu_layers = -1"), (Some(GpuLayers::All), vec![0]));
    assert_eq!(layers("gpu_layers = 33"), (Some(GpuLayers::Count(33)), vec![0]));
    assert_eq!(layers("gpu_layers = \"auto\"").0, Some(GpuLayers::Auto));
    let asked = "a number of layers, -1 for all of them, or \"auto\"";
    for wrong in ["-2", "\"all\"", "65536", "true"] {
        refuses(&format!("{SMALLEST}gpu_layers = {wrong}\n"), 3, "gpu_layers", asked);
    }
    assert_eq!(layers("gpu_layers = -1\ngpu_device = [3, 0, 255]").1, [0, 3, 255]);
    let many = format!("{:?}", (0..17).collect::<Vec<_>>());
    for (wrong, why) in [
        ("256", "from 0 to 255"),
        ("[1, 256]", "from 0 to 255"),
        ("[]", "1 to 16 cards, each once"),
        ("[1, 0, 1]", "1 to 16 cards, each once"),
        (&many, "1 to 16 cards, each once"),
    ] {
        let device = format!("{SMALLEST}gpu_device = {wrong}\n");
        refuses(&device, 3, "model.gpu_device", why);
    }
    for (wrong, why) in [
        ("-1", "the number of a card, or a list of such numbers"),
        ("\"all\"", "the number of a card, or a list of such numbers"),
        ("[0, -1]", "u32"),
    ] {
        refuses(&format!("{SMALLEST}gpu_device = {wrong}\n"), 3, "gpu_device", why);
    }
    let driver = parse(&format!("{SMALLEST}[gpu]\ndriver = \"lib\"\n")).unwrap().gpu_driver;
    assert_eq!(driver.as_deref(), Some(Path::new("/c/lib")));
}

#[test]
fn addresses_that_others_reach_need_tls() {
    let at = |listen: &str| format!("[server]\nlisten = [\"{listen}\"]\n{SMALLEST}");
    refuses(&at("0.0.0.0:8443"), 2, "server.listen", "needs TLS");
    refuses(&at("localhost"), 2, "server.listen", "127.0.0.1:8443");
    refuses(&format!("[server]\nlisten = []\n{SMALLEST}"), 2, "server.listen", "1 to 8");
    let half = format!("[server]\ncertificate = \"c.pem\"\n{SMALLEST}");
    refuses(&half, 2, "server.certificate", "both");
    refuses(&format!("[keys]\ntls = \"k.pem\"\n{SMALLEST}"), 2, "keys.tls", "both");
    let tls = "[server]\nlisten = [\"0.0.0.0:8443\"]\ncertificate = \"c.pem\"\n\
               [keys]\ntls = \"k.pem\"\n";
    parse(&format!("{tls}{SMALLEST}")).unwrap();
    let plain_user = Config::parse(Path::new("c"), &format!("{tls}{SMALLEST}"), false, None);
    let error = plain_user.unwrap_err();
    assert!(matches!(error.fault, Fault::EvaluationNotLoopback), "{error}");
}

#[test]
fn the_profile_follows_the_user() {
    let evaluation = format!("profile = \"evaluation\"\n{SMALLEST}");
    refuses(&evaluation, 1, "profile", "root gets the full profile");
    let full = format!("profile = \"full\"\n{SMALLEST}");
    let error = Config::parse(Path::new("c"), &full, false, None).unwrap_err();
    assert!(matches!(error.fault, Fault::FullNeedsRoot));
    let config = Config::parse(Path::new("c"), SMALLEST, false, None).unwrap();
    assert_eq!(config.profile, Profile::Evaluation);
}

#[test]
fn numbers_have_ranges() {
    let limits = format!("{SMALLEST}[limits]\nrequests_max = 5\nread_deadline_ms = 1\n");
    refuses(&limits, 5, "limits.read_deadline_ms", "from 100 to 600000");
    let body = format!("{SMALLEST}[limits]\nbody_len_max_bytes = 16777216\n");
    refuses(&body, 4, "limits.body_len_max_bytes", "to 8388608");
    let peer = format!("{SMALLEST}[limits]\nconnections_per_peer_max = 0\n");
    refuses(&peer, 4, "limits.connections_per_peer_max", "from 1 to 16384");
    refuses(&format!("{SMALLEST}[worker]\nsequences = 0\n"), 4, "worker.sequences", "from 1");
    let keep = format!("{SMALLEST}[worker]\nprefix_tokens = 0\nprefix_keep_s = 0\n");
    refuses(&keep, 5, "worker.prefix_keep_s", "to 86400");
    let guess = format!("{SMALLEST}[worker]\nguess_tokens = 16\n");
    refuses(&guess, 4, "worker.guess_tokens", "from 0 to 15");
    let abi = format!("{SMALLEST}[sandbox]\nlandlock_abi_min = 1\n");
    refuses(&abi, 4, "sandbox.landlock_abi_min", "from 2 to 64");
}

#[test]
fn keys_and_values_are_held_in_8_bits_beside_the_fast_mode_only() {
    let kv = |text: &str| parse(&format!("{SMALLEST}[worker]\n{text}\n"));
    assert_eq!(kv("kv = \"q8_0\"").unwrap().worker.kv, Kv::Q8_0);
    assert_eq!(kv("activations = \"int8\"\nkv = \"q8_0\"").unwrap().worker.kv, Kv::Q8_0);
    assert_eq!(kv("activations = \"f32\"\nkv = \"f16\"").unwrap().worker.kv, Kv::F16);
    let both = format!("{SMALLEST}[worker]\nactivations = \"f32\"\nkv = \"q8_0\"\n");
    refuses(&both, 5, "worker.kv", "remove the line, or set worker.activations");
}

#[test]
fn workers_of_one_request_are_as_many_as_the_spawner_starts_and_each_has_a_user() {
    let with = |text: &str| format!("{SMALLEST}[worker]\nlifetime = \"request\"\n{text}");
    let counts = |worker: Worker| (worker.count(), worker.computing_count());
    assert_eq!(counts(parse(SMALLEST).unwrap().worker), (1, 1));
    assert_eq!(counts(parse(&with("")).unwrap().worker), (5, 4));
    assert_eq!(counts(parse(&with("sequences = 50\nspare = 6\n")).unwrap().worker), (56, 50));
    refuses(&with("sequences = 56\n"), 4, "worker.lifetime", "more than 56 processes");
    refuses(&with("spare = 17\n"), 5, "worker.spare", "from 0 to 16");
    let users = with("[users]\nworker_first = 60798\n");
    assert_eq!(refused(&users).1, "users", "the third worker would be the supervisor");
}

#[test]
fn users_are_distinct_and_not_root() {
    let users = |text: &str| format!("{SMALLEST}[users]\n{text}\n");
    for text in
        ["gateway = 0", "gateway = 60802", "worker_first = 60803", "worker_first = 4294967295"]
    {
        let (_, key, message) = refused(&users(text));
        assert_eq!(key, "users", "{message}");
    }
    parse(&users("gateway = 7")).unwrap();
}

#[test]
fn credentials_come_from_systemd() {
    let text = format!("[keys]\nidentity = \"credential:age\"\n{SMALLEST}");
    refuses(&text, 2, "keys.identity", "LoadCredential");
    let folder = Path::new("/run/credentials/cloister.service");
    let config = Config::parse(Path::new("/c/c"), &text, true, Some(folder)).unwrap();
    assert_eq!(config.keys.identity, folder.join("age"));
}

#[test]
fn a_missing_or_endless_file_is_named() {
    let error = Config::read(Path::new("/nonexistent/cloister.toml"), true, None).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cloister.toml"), "{error}");
    assert!(matches!(error.fault, Fault::Io(_)));
}

#[test]
fn retention_is_never_short_by_mistake_and_copies_are_two() {
    let audit = |text: &str| format!("{SMALLEST}[audit]\n{text}\n");
    let config = parse(SMALLEST).unwrap();
    assert_eq!((config.audit_retention, config.audit_replica), (Retention::default(), None));
    let kept = parse(&audit("retention_min = \"6m\"\nretention_max = \"2y\"")).unwrap();
    let days = |time_s: u64| time_s / 86_400;
    assert_eq!(days(kept.audit_retention.min_s), 183);
    assert_eq!(kept.audit_retention.max_s.map(days), Some(731));
    refuses(&audit("retention_min = \"181d\""), 4, "audit.retention_min", "--force");
    refuses(&audit("retention_max = \"soon\""), 4, "audit.retention_max", "18m");
    refuses(&audit("retention_max = \"5y\""), 4, "audit.retention_max", "shorter than");
    let preset = |text: &str| parse(&audit(text)).unwrap().audit_retention;
    assert_eq!(preset("retention_preset = \"eu\""), Retention::of(RetentionPreset::Eu));
    assert_eq!(preset("retention_preset = \"us\""), Retention::of(RetentionPreset::Us));
    let own = preset("retention_preset = \"eu\"\nretention_min = \"1y\"\nretention_max = \"3y\"");
    assert_eq!((days(own.min_s), own.max_s.map(days)), (366, Some(1096)), "said beats preset");
    assert_eq!(own.preset, Some(RetentionPreset::Eu));
    let us = "retention_preset = \"us\"\n";
    refuses(&audit(&format!("{us}retention_max = \"5y\"")), 5, "audit.retention_max", "2192 days");
    let eu = "retention_preset = \"eu\"\n";
    refuses(&audit(&format!("{eu}retention_max = \"5m\"")), 5, "audit.retention_max", "--force");
    let beyond = audit(&format!("{eu}retention_min = \"2y\""));
    refuses(&beyond, 5, "audit.retention_min", "set audit.retention_max too");
    refuses(&audit("retention_preset = \"uk\""), 4, "retention_preset", "`eu` or `us`");
    refuses(&audit("replica_mode = \"one\""), 4, "audit.replica_mode", "audit.replica");
    refuses(
        &audit("replica = \"r\"\nreplica_mode = \"any\""),
        5,
        "replica_mode",
        "`one` or `both`",
    );
    let two = parse(&audit("replica = \"r\"\nreplica_mode = \"one\"")).unwrap();
    assert_eq!(two.audit_replica.as_deref(), Some(Path::new("/c/r")));
    assert_eq!(two.audit_replica_mode, Mode::One);
}
