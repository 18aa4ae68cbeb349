//! Files, good and bad: which objects they give, and which errors.

use super::*;
use crate::explain;
use crate::manifests::facts::MAX_FILE_BYTES;

fn settings() -> Settings {
    Settings::new("n1", "cali")
}

/// `want` are the names of the objects, and the errors; `*` in an error stands for the parser's own words.
#[track_caller]
fn check(file: &str, want_objects: &[&str], want_errors: &[&str]) {
    check_bytes(file.as_bytes(), want_objects, want_errors);
}

#[track_caller]
fn check_bytes(file: &[u8], want_objects: &[&str], want_errors: &[&str]) {
    let decoded = decode("f.yaml", file, &settings());
    let objects: Vec<_> = decoded.objects.keys().map(|(kind, _, name)| format!("{kind} {name}")).collect();
    let errors: Vec<_> = decoded.errors.iter().map(|error| explain(error, error.advice())).collect();
    assert_eq!(objects, want_objects);
    let alike = |(found, want): (&String, &&str)| match want.split_once('*') {
        Some((begin, end)) => found.starts_with(begin) && found.ends_with(end),
        None => found == want,
    };
    let all_alike = errors.len() == want_errors.len() && errors.iter().zip(want_errors).all(alike);
    assert!(all_alike, "{errors:#?} are not {want_errors:#?}");
}

const A: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
const B: &str = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}"#;

#[test]
fn documents_are_read_one_by_one() {
    check("", &[], &[]);
    check("# nothing\n---\n\n---\nnull\n", &[], &[]);
    check(A, &["Namespace a"], &[]);
    check(&format!("---\n{A}\n---\n{B}\n---\n"), &["Namespace a", "Namespace b"], &[]);
    check(&format!("%YAML 1.2\n---\n{A}\n...\n--- # more\n{B}"), &["Namespace a", "Namespace b"], &[]);
    check(&format!("--- {A}\r\n---\r\n{B}\r\n"), &["Namespace a", "Namespace b"], &[]);
    check("{apiVersion: v1, kind: Secret, data: {x: .inf, y: !x z}, 1: 2}", &[], &[]);
}

#[test]
fn a_broken_document_spoils_no_other() {
    check(
        &format!("{A}\n---\n# comment\nkind: Pod\nmetadata:\n  name: 'x\n---\n{B}"),
        &["Namespace a", "Namespace b"],
        &["cannot parse the document at f.yaml:4: * at line 7, column 1; correct it"],
    );
    check(
        &format!("{B}\n---\n{{\"a\": }}}}\n"),
        &["Namespace b"],
        &["cannot parse the document at f.yaml:3: * at line 3, column 8; correct it"],
    );
    check_bytes(
        b"\xff\xfe\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}",
        &["Namespace a"],
        &[
            "cannot read the document at f.yaml:1 as text: invalid utf-8 sequence of 1 bytes from index 0; save it as UTF-8",
        ],
    );
    check(
        &format!("a: 1\na: 2\n---\n{A}"),
        &["Namespace a"],
        &["cannot parse the document at f.yaml:1: duplicate * at line 2, column 1; correct it"],
    );
}

#[test]
fn what_is_no_object_is_told() {
    check(
        "hello\n---\n- a\n",
        &[],
        &[
            "cannot use the document at f.yaml:1: it is text, not an object; give it apiVersion, kind and metadata, or remove it",
            "cannot use the document at f.yaml:3: it is a list, not an object; give it apiVersion, kind and metadata, or remove it",
        ],
    );
    check(
        "\nreplicas: 3\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}",
        &[],
        &[
            "cannot use ? ? at f.yaml:2: kind is missing; add it",
            "cannot use Pod p at f.yaml:4: metadata.namespace is missing; add it, also where kubectl would take it from its context",
        ],
    );
}

#[test]
fn lists_are_unfolded() {
    check(
        &format!("apiVersion: v1\nitems:\n- {A}\n- {B}\nkind: List\n"),
        &["Namespace a", "Namespace b"],
        &[],
    );
    check(
        "{kind: NamespaceList, apiVersion: v1, items: [{metadata: {name: a}}, {metadata: {name: b}}]}",
        &["Namespace a", "Namespace b"],
        &[],
    );
    check(
        r#"{"items": [{"metadata": {"name": "a"}}], "kind": "GlobalNetworkPolicyList", "apiVersion": "projectcalico.org/v3"}"#,
        &["GlobalNetworkPolicy.projectcalico.org a"],
        &[],
    );
    check(
        "{kind: NetworkPolicyList, apiVersion: networking.k8s.io/v1, items: [{metadata: {namespace: n, name: a}}]}",
        &["NetworkPolicy.networking.k8s.io a"],
        &[],
    );
    check("{kind: PodList, apiVersion: v1, metadata: {resourceVersion: ''}}", &[], &[]);
    check("{kind: SecretList, apiVersion: v1, items: [{data: {}}]}", &[], &[]);
}

#[test]
fn a_bad_item_spoils_no_other() {
    check(
        "\n{kind: NamespaceList, apiVersion: v1, items: [7, {metadata: {name: a}}, {}, null]}",
        &["Namespace a"],
        &[
            "cannot use item 1 at f.yaml:2: it is a number, not an object; give it apiVersion, kind and metadata, or remove it",
            "cannot use item 3, Namespace ?, at f.yaml:2: metadata.name is missing; add it",
        ],
    );
    check(
        "{kind: List, apiVersion: v1, items: [{metadata: {name: a}}]}",
        &[],
        &["cannot use item 1, ? a, at f.yaml:1: kind is missing; add it"],
    );
    check(
        "{kind: PodList, apiVersion: v1, items: {}}",
        &[],
        &["cannot use PodList ? at f.yaml:1: items must not be a map; correct it"],
    );
}

#[test]
fn of_two_that_differ_the_last_counts() {
    let policy = |tier| {
        format!(
            "{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: x}}, spec: {{tier: {tier}}}}}"
        )
    };
    let file = format!("{}\n---\n{}\n", policy("a"), policy("b"));
    check(
        &file,
        &["GlobalNetworkPolicy.projectcalico.org x"],
        &[
            "cannot tell which GlobalNetworkPolicy x counts: the one at f.yaml:3 is not the first and differs; remove one of them",
        ],
    );
    let decoded = decode("f.yaml", file.as_bytes(), &settings());
    let Some(Object::Policy(_, tier)) = decoded.objects.into_values().next() else { panic!("a policy") };
    assert_eq!(tier.as_str(), "b");
    check(&format!("{A}\n---\n{A}"), &["Namespace a"], &[]);
}

#[test]
fn what_would_cost_too_much_is_refused() {
    let refused = |file: &str, why: &str| {
        let decoded = decode("f.yaml", file.as_bytes(), &settings());
        let error = decoded.errors.first().expect("an error");
        let text = explain(error, error.advice());
        assert!(decoded.objects.is_empty() && text.contains(why), "{text}");
    };
    refused(&" ".repeat(MAX_FILE_BYTES + 1), "more than 67108864 bytes");
    refused(&"[".repeat(100_000), "limit");
    refused(&"- ".repeat(100_000), "Depth");
    refused(&"{\"a\":".repeat(100_000), "limit");
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..20 {
        let below = vec![format!("*a{}", level - 1); 9].join(",");
        laughs.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    refused(&laughs, "limit");
    refused(&format!("items: [{}]\n", "{},".repeat(250_001)), "more than 250000 items");
}

#[test]
fn errors_are_kept_up_to_a_limit() {
    let decoded = decode("f.yaml", "---\nx\n".repeat(1000).as_bytes(), &settings());
    assert_eq!((decoded.errors.len(), decoded.more_errors), (MAX_ERRORS, 1000 - MAX_ERRORS));
}

#[test]
fn long_comments_lines_and_deep_objects_are_no_trouble() {
    let comments = "# a licence\n".repeat(500);
    check(
        &format!("{comments}metadata:\n{comments}  name: a\n{comments}apiVersion: v1\nkind: Namespace"),
        &["Namespace a"],
        &[],
    );
    let long = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: a}}, spec: [{}x]}}",
        "'xxxxxxxx', ".repeat(10_000)
    );
    check(&long, &["Namespace a"], &[]);
    let deep = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\nspec: {}{}",
        "{x: ".repeat(60),
        "}".repeat(60)
    );
    check(&deep, &["Namespace a"], &[]);
}
