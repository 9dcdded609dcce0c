use potluck_client::*;
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let nested = "{% set ns = namespace(s=['xxxxxxxx']) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}";
    let v = [
        "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}".to_owned(),
        "{% set ns = namespace(s=['x']) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}".to_owned(),
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}".to_owned(),
        "{{ 'x' * 100000000000 }}".to_owned(),
        "{% for i in range(100000000000) %}{% endfor %}".to_owned(),
        format!("{nested}{{{{ ns.s | tojson }}}}"),
        format!("{nested}{{{{ ns.s }}}}"),
        format!("{nested}"),
    ];
    let t = std::time::Instant::now();
    let r = ChatTemplate::new(&v[n]).and_then(|t| t.render(&[], &SpecialTokens::default(), &RenderOptions::at(0)));
    println!("{n} {:?} {:?}", t.elapsed(), r.map(|x| x.len()));
}
