//! Header fields of HTTP/2 without their history: what a block says by itself (RFC 7541).
//!
//! Total, bounded by the block. What refers to the dynamic table has come before and is not known; it is never guessed.

/// One field of a block.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is called; `None`: it is none of those that are asked for, or what came before says.
    pub name: Option<Name>,
    /// What it says; `None`: what came before says.
    pub value: Option<Value>,
}

/// The fields that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Method,
    Path,
    Authority,
    Host,
    Status,
}

/// A value, as far as it is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Value {
    pub text: Vec<u8>,
    pub is_cut: bool,
}

/// The fields of a block that may end anywhere. After an error nothing more is said of it.
pub struct Fields<'a> {
    rest: &'a [u8],
    /// The block is malformed from here on.
    pub is_broken: bool,
}

impl<'a> Fields<'a> {
    pub fn of(block: &'a [u8]) -> Self {
        Self {
            rest: block,
            is_broken: false,
        }
    }

    /// How the next field is written, and its index: none where the block ends.
    fn next_field(&mut self) -> Result<Option<Field>, Stop> {
        let first = loop {
            let Some(first) = self.rest.first().copied() else {
                return Ok(None);
            };
            // A change of the dynamic table's size.
            if first & 0b1110_0000 != 0b0010_0000 {
                break first;
            }
            self.integer(5)?;
        };
        if first & 0x80 != 0 {
            return match self.integer(7)? {
                0 => Err(Stop::Broken),
                index => {
                    let (name, value) = indexed(index);
                    let value = value.map(|value| Value {
                        text: value.to_vec(),
                        is_cut: false,
                    });
                    Ok(Some(Field { name, value }))
                }
            };
        }
        let name = match self.integer(if first & 0x40 != 0 { 6 } else { 4 })? {
            0 => {
                let name = self.string()?;
                // One that is cut has no value behind it.
                (!name.is_cut).then(|| named(&name.text)).ok_or(Stop::Ended)?
            }
            index => indexed(index).0,
        };
        let value = Some(self.string()?);
        Ok(Some(Field { name, value }))
    }

    /// An integer in the low `bits` of the first byte and those behind it (5.1). None is as large as 2^21 here.
    fn integer(&mut self, bits: u32) -> Result<usize, Stop> {
        let (first, mut rest) = self.rest.split_first().ok_or(Stop::Ended)?;
        let most = (1u8 << bits) - 1;
        let mut value = usize::from(first & most);
        if value == usize::from(most) {
            let mut shift = 0;
            loop {
                let (next, behind) = rest.split_first().ok_or(Stop::Ended)?;
                rest = behind;
                value += usize::from(next & 0x7f) << shift;
                if next & 0x80 == 0 {
                    break;
                }
                shift += 7;
                if shift > 14 {
                    return Err(Stop::Broken);
                }
            }
        }
        self.rest = rest;
        Ok(value)
    }

    /// A string (5.2), as far as it is there.
    fn string(&mut self) -> Result<Value, Stop> {
        let is_coded = self.rest.first().ok_or(Stop::Ended)? & 0x80 != 0;
        let length = self.integer(7)?;
        let (bytes, rest) = self.rest.split_at(length.min(self.rest.len()));
        let is_cut = bytes.len() < length;
        self.rest = rest;
        let text = if is_coded {
            huffman(bytes, is_cut).ok_or(Stop::Broken)?
        } else {
            bytes.to_vec()
        };
        Ok(Value { text, is_cut })
    }
}

impl Iterator for Fields<'_> {
    type Item = Field;

    fn next(&mut self) -> Option<Field> {
        match self.next_field() {
            Ok(field) => field,
            Err(stop) => {
                self.is_broken |= stop == Stop::Broken;
                self.rest = &[];
                None
            }
        }
    }
}

/// Why a block says no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It goes on behind what is there.
    Ended,
    /// It is no block.
    Broken,
}

fn named(name: &[u8]) -> Option<Name> {
    match name {
        b":method" => Some(Name::Method),
        b":path" => Some(Name::Path),
        b":authority" => Some(Name::Authority),
        b":status" => Some(Name::Status),
        b"host" => Some(Name::Host),
        _ => None,
    }
}

/// What the static table has (Appendix A) of the fields that are asked for.
fn indexed(index: usize) -> (Option<Name>, Option<&'static [u8]>) {
    let (name, value): (_, &'static [u8]) = match index {
        1 => (Name::Authority, b""),
        2 => (Name::Method, b"GET"),
        3 => (Name::Method, b"POST"),
        4 => (Name::Path, b"/"),
        5 => (Name::Path, b"/index.html"),
        8 => (Name::Status, b"200"),
        9 => (Name::Status, b"204"),
        10 => (Name::Status, b"206"),
        11 => (Name::Status, b"304"),
        12 => (Name::Status, b"400"),
        13 => (Name::Status, b"404"),
        14 => (Name::Status, b"500"),
        38 => (Name::Host, b""),
        _ => return (None, None),
    };
    (Some(name), Some(value))
}

/// The code of Appendix B is canonical: of each length, what it stands for, in order. The end-of-string symbol, the last of
/// 30 bits, is no part of a text.
const CODE: [(u32, &[u8]); 21] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\x00$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\\xc3\xd0"),
    (20, b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2"),
    (21, b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6"),
    (
        22,
        b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    ),
    (
        23,
        b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\
        \xe7\xef",
    ),
    (24, b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed"),
    (25, b"\xc7\xcf\xea\xeb"),
    (26, b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff"),
    (
        27,
        b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe",
    ),
    (
        28,
        b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f\
        \xdc\xf9",
    ),
    (30, b"\n\r\x16"),
];

/// Takes the code apart. Where the text goes on behind these bytes, what of it is whole; otherwise the rest of the last
/// byte must be the ones that fill it (5.2).
fn huffman(bytes: &[u8], is_cut: bool) -> Option<Vec<u8>> {
    let n_bits = bytes.len() * 8;
    let bit = |at: usize| {
        bytes
            .get(at / 8)
            .map_or(0, |byte| u32::from(byte >> (7 - at % 8)) & 1)
    };
    let mut text = Vec::new();
    let mut at = 0;
    while at < n_bits {
        let (mut code, mut length, mut first) = (0, 0, 0);
        let symbol = CODE.iter().find_map(|(longer, symbols)| {
            while length < *longer {
                code = code << 1 | bit(at + length as usize);
                first <<= 1;
                length += 1;
            }
            let place = code - first;
            first += u32::try_from(symbols.len()).unwrap_or(u32::MAX);
            symbols.get(place as usize)
        });
        match symbol {
            Some(symbol) if at + length as usize <= n_bits => {
                text.push(*symbol);
                at += length as usize;
            }
            _ if is_cut => break,
            _ => {
                let is_filling = n_bits - at < 8 && (at..n_bits).all(|at| bit(at) == 1);
                return is_filling.then_some(text);
            }
        }
    }
    Some(text)
}

#[cfg(test)]
pub mod tests;
