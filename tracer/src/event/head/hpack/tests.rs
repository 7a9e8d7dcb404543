//! The examples of RFC 7541, Appendix C, and its code with each byte.

use proptest::prelude::*;

use super::*;

type Text = (Option<Name>, Option<String>);

fn fields(block: &[u8]) -> (Vec<Text>, bool) {
    let mut fields = Fields::of(block);
    let said = |field: Field| {
        let value = field
            .value
            .map(|value| String::from_utf8_lossy(&value.text).into_owned());
        (field.name, value)
    };
    ((&mut fields).map(said).collect(), fields.is_broken)
}

fn field(name: Option<Name>, value: &str) -> Text {
    (name, Some(value.to_owned()))
}

/// A text in the code, as an encoder writes it.
pub fn coded(text: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    for byte in text {
        let (mut code, mut length) = (0u32, 0);
        for (longer, symbols) in CODE {
            code <<= longer - length;
            length = longer;
            if let Some(place) = symbols.iter().position(|symbol| symbol == byte) {
                code += u32::try_from(place).unwrap();
                break;
            }
            code += u32::try_from(symbols.len()).unwrap();
        }
        bits.extend((0..length).rev().map(|bit| code >> bit & 1));
    }
    bits.chunks(8)
        .map(|bits| {
            let filled = bits.iter().chain(std::iter::repeat(&1)).take(8);
            filled.fold(0, |byte, bit| byte << 1 | u8::try_from(*bit).unwrap())
        })
        .collect()
}

#[test]
fn a_block_as_it_is_and_in_the_code() {
    let expected = vec![
        field(Some(Name::Method), "GET"),
        (None, None),
        field(Some(Name::Path), "/"),
        field(Some(Name::Authority), "www.example.com"),
    ];
    // C.3.1 and C.4.1.
    assert_eq!(
        fields(b"\x82\x86\x84\x41\x0fwww.example.com"),
        (expected.clone(), false)
    );
    let block = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
    assert_eq!(fields(block), (expected, false));
    // C.6.1: a status and what follows it.
    let block = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b";
    assert_eq!(
        fields(block),
        (
            vec![field(Some(Name::Status), "302"), field(None, "private")],
            false
        )
    );
}

#[test]
fn what_came_before_is_not_guessed() {
    // C.4.3: its authority is in the dynamic table, and then comes a name of its own.
    let block =
        b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
    let expected = vec![
        field(Some(Name::Method), "GET"),
        (None, None),
        field(Some(Name::Path), "/index.html"),
        (None, None),
        field(None, "custom-value"),
    ];
    assert_eq!(fields(block), (expected, false));
    // A value of its own behind a name of before; and a change of the table's size before the first field.
    assert_eq!(fields(b"\x7e\x01x"), (vec![field(None, "x")], false));
    assert_eq!(
        fields(b"\x20\x3f\xe1\x1f\x88"),
        (vec![field(Some(Name::Status), "200")], false)
    );
}

#[test]
fn the_code_is_complete_and_holds_each_byte_once() {
    let mut known: Vec<u8> = CODE
        .iter()
        .flat_map(|(_, symbols)| symbols.iter().copied())
        .collect();
    known.sort_unstable();
    assert_eq!(known, (0..=255).collect::<Vec<u8>>());
    // With the end-of-string symbol, of 30 bits, nothing is left over.
    let used: u64 = CODE
        .iter()
        .map(|(length, symbols)| (symbols.len() as u64) << (30 - length))
        .sum();
    assert_eq!(used + 1, 1 << 30);
    // The last of each length, as Appendix B has them.
    for (symbol, code) in [
        (b't', "01001"),
        (b'u', "101101"),
        (b'z', "1111011"),
        (b'Z', "11111101"),
        (b'?', "1111111100"),
        (0xef, "11111111111111111110100"),
        (0xf9, "1111111111111111111111111110"),
        (22, "111111111111111111111111111110"),
    ] {
        let bits: String = coded(&[symbol])
            .iter()
            .map(|byte| format!("{byte:08b}"))
            .collect();
        assert_eq!(bits.get(..code.len()), Some(code), "{symbol}");
        assert!(bits.len() < code.len() + 8);
    }
}

#[test]
fn what_fills_the_last_byte_must_be_ones_and_less_than_a_byte() {
    assert_eq!(huffman(b"\x07", false), Some(b"0".to_vec()));
    assert_eq!(huffman(b"\x06", false), None);
    assert_eq!(huffman(b"\x07\xff", false), None);
    assert_eq!(
        huffman(b"\xff\xff\xff\xff", false),
        None,
        "the end-of-string symbol"
    );
}

#[test]
fn a_block_that_is_none_is_broken() {
    for block in [b"\x80".as_slice(), b"\xff\xff\xff\xff\xff\xff", b"\x04\x81\x00"] {
        assert_eq!(fields(block), (Vec::new(), true), "{block:?}");
    }
}

proptest! {
    #[test]
    fn any_block_is_read_within_its_bounds(block: Vec<u8>) {
        let (fields, _) = fields(&block);
        assert!(fields.len() <= block.len());
        // The shortest code has 5 bits.
        let said: usize = fields.iter().filter_map(|(_, value)| value.as_ref()).map(String::len).sum();
        assert!(said <= 16 * (block.len() + 1));
    }

    #[test]
    fn any_text_comes_back(text: Vec<u8>, cut in 0..40usize) {
        let mut bytes = coded(&text);
        prop_assert_eq!(huffman(&bytes, false), Some(text.clone()));
        bytes.truncate(bytes.len().saturating_sub(cut));
        let begun = huffman(&bytes, true).unwrap();
        prop_assert!(text.starts_with(&begun));
    }
}
