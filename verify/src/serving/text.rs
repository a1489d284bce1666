//! Cases of inference engines as lines of text, and back.
//!
//! ```text
//! serving sm_80 bf16 kv=e4m3/head h2x4 d128/128 lengths=3:70,0:5 room=2 queries=packed-used cache=pages16 order=chunked gap=3 latent
//!     causal=bottom-right window=5,-1 scale=5e-1 softcap=3e1 alibi=head sink bias=f32:b--k mask=bit:bhqk ranges=2 out-dtype=f32
//!     splits=keys64 spread=1e1 first=2 hostile seed=7
//! ```
//!
//! Words in any order; what is left out is as in [`ServingCase::new`]. `lengths` are queries:keys of each sequence; of bias and mask
//! the letters say which of batch, heads, queries and keys they have in full.

use std::{fmt, str::FromStr};

use flashtile::{
    CausalAlignment, DType,
    serving::{BiasType, CacheScales, MaskType, Splits},
};

use super::case::{Bias, Cache, CacheOrder, MaskCase, Queries, ServingCase};
use crate::text::{ARCHES, number, window_of, window_text};

const QUERIES: [(&str, Queries); 4] = [
    ("dense", Queries::Dense),
    ("dense-used", Queries::DenseUsed),
    ("packed", Queries::Packed),
    ("packed-used", Queries::PackedUsed),
];
const CACHES: [(&str, Cache); 4] = [
    ("dense", Cache::Dense),
    ("dense-used", Cache::DenseUsed),
    ("packed", Cache::Packed),
    ("packed-used", Cache::PackedUsed),
];
const ORDERS: [(&str, CacheOrder); 3] = [
    ("rows-first", CacheOrder::RowsFirst),
    ("heads-first", CacheOrder::HeadsFirst),
    ("chunked", CacheOrder::Chunked),
];
const SCALES: [(&str, CacheScales); 4] = [
    ("one", CacheScales::None),
    ("tensor", CacheScales::PerTensor),
    ("head", CacheScales::PerHead),
    ("sequence", CacheScales::PerSequence),
];
const ALIGNMENTS: [(&str, CausalAlignment); 2] = [
    ("bottom-right", CausalAlignment::BottomRight),
    ("top-left", CausalAlignment::TopLeft),
];
const ALIBI: [(&str, bool); 2] = [("head", false), ("sequence", true)];
const BIASES: [(&str, BiasType); 2] = [("same", BiasType::Same), ("f32", BiasType::F32)];
const MASKS: [(&str, MaskType); 2] = [("byte", MaskType::Byte), ("bit", MaskType::Bit)];
const DTYPES: [DType; 2] = [DType::F16, DType::Bf16];

/// The word for a value. (All values are in their tables.)
fn word<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    let found = table.iter().find(|(_, it)| it == value);
    found.map_or("?", |(word, _)| word)
}

/// The value of a word.
fn value<T: Copy>(table: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = table.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = table.iter().map(|(word, _)| *word).collect();
        format!("`{text}` is none of {}", known.join(", "))
    })
}

const DIMENSIONS: [char; 4] = ['b', 'h', 'q', 'k'];

fn whole_text(whole: [bool; 4]) -> String {
    let letters = DIMENSIONS.iter().zip(whole);
    letters.map(|(&it, is)| if is { it } else { '-' }).collect()
}

fn whole_of(text: &str) -> Result<[bool; 4], String> {
    let letters: Vec<char> = text.chars().collect();
    let known = |(&it, letter): (&char, char)| it == letter || it == '-';
    match letters.len() == 4 && letters.iter().zip(DIMENSIONS).all(known) {
        true => Ok(std::array::from_fn(|i| letters[i] != '-')),
        false => Err(format!("`{text}` is not bhqk, or - for letters of it")),
    }
}

impl fmt::Display for ServingCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::new(self.dtype, &[], 1);
        write!(f, "serving")?;
        if let Some((arch, _)) = ARCHES.iter().find(|(_, arch)| *arch == self.arch) {
            write!(f, " {arch}")?;
        }
        write!(f, " {}", self.dtype.as_str())?;
        if let Some(scales) = self.kv_scales {
            write!(f, " kv=e4m3/{}", word(&SCALES, &scales))?;
        }
        let [qk, v] = self.dims;
        write!(f, " h{}x{} d{qk}/{v}", self.heads_kv, self.q_per_kv)?;
        let lengths = self.lengths.iter();
        let lengths: Vec<_> = lengths.map(|[q, k]| format!("{q}:{k}")).collect();
        write!(f, " lengths={}", lengths.join(","))?;
        if self.room > 0 {
            write!(f, " room={}", self.room)?;
        }
        if self.queries != plain.queries {
            write!(f, " queries={}", word(&QUERIES, &self.queries))?;
        }
        match self.cache {
            Cache::Paged(rows) => write!(f, " cache=pages{rows}")?,
            Cache::PagedStarts(rows) => write!(f, " cache=starts-pages{rows}")?,
            cache if cache != plain.cache => write!(f, " cache={}", word(&CACHES, &cache))?,
            _ => {}
        }
        if self.order != plain.order {
            write!(f, " order={}", word(&ORDERS, &self.order))?;
        }
        if self.gap > 0 {
            write!(f, " gap={}", self.gap)?;
        }
        if self.latent {
            write!(f, " latent")?;
        }
        if let Some(alignment) = self.causal {
            write!(f, " causal={}", word(&ALIGNMENTS, &alignment))?;
        }
        if self.window != plain.window {
            write!(f, " window={}", window_text(self.window))?;
        }
        if let Some(scale) = self.scale {
            write!(f, " scale={scale:e}")?;
        }
        if let Some(softcap) = self.softcap {
            write!(f, " softcap={softcap:e}")?;
        }
        if let Some(alibi) = self.alibi {
            write!(f, " alibi={}", word(&ALIBI, &alibi))?;
        }
        if self.sink {
            write!(f, " sink")?;
        }
        if let Some(Bias { element, whole }) = self.bias {
            write!(f, " bias={}:{}", word(&BIASES, &element), whole_text(whole))?;
        }
        if let Some(MaskCase { element, whole }) = self.mask {
            write!(f, " mask={}:{}", word(&MASKS, &element), whole_text(whole))?;
        }
        if self.ranges > 0 {
            write!(f, " ranges={}", self.ranges)?;
        }
        if self.wide_out {
            write!(f, " out-dtype=f32")?;
        }
        match self.splits {
            Splits::One => {}
            Splits::Auto => write!(f, " splits=auto")?,
            Splits::Keys(keys) => write!(f, " splits=keys{keys}")?,
        }
        if self.spread != plain.spread {
            write!(f, " spread={:e}", self.spread)?;
        }
        if self.first > 0 {
            write!(f, " first={}", self.first)?;
        }
        if self.hostile {
            write!(f, " hostile")?;
        }
        write!(f, " seed={}", self.seed)
    }
}

impl FromStr for ServingCase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut case = Self::new(DType::F16, &[[1, 1]], 1);
        let mut words = text.split_whitespace();
        if words.next() != Some(Self::WORD) {
            return Err(format!("no `{}` at the beginning", Self::WORD));
        }
        for word in words {
            case.read_word(word)
                .map_err(|reason| format!("{word}: {reason}"))?;
        }
        Ok(case)
    }
}

impl ServingCase {
    /// What lines begin with.
    pub const WORD: &str = "serving";

    fn read_word(&mut self, word: &str) -> Result<(), String> {
        if let Some((name, value)) = word.split_once('=') {
            return self.read_option(name, value);
        }
        if let Some(&dtype) = DTYPES.iter().find(|it| it.as_str() == word) {
            self.dtype = dtype;
            return Ok(());
        }
        if let Some(&(_, arch)) = ARCHES.iter().find(|(name, _)| *name == word) {
            self.arch = arch;
            return Ok(());
        }
        match word {
            "latent" => self.latent = true,
            "sink" => self.sink = true,
            "hostile" => self.hostile = true,
            _ => match word.split_at_checked(1) {
                Some(("h", rest)) => {
                    let (kv, each) = rest.split_once('x').ok_or("no `x`")?;
                    (self.heads_kv, self.q_per_kv) = (positive(kv)?, positive(each)?);
                }
                Some(("d", rest)) => {
                    let (qk, v) = rest.split_once('/').ok_or("no `/`")?;
                    self.dims = [positive(qk)?, positive(v)?];
                }
                _ => return Err("not part of a case".into()),
            },
        }
        Ok(())
    }

    fn read_option(&mut self, name: &str, text: &str) -> Result<(), String> {
        let pair = |text: &str| -> Result<[usize; 2], String> {
            let (q, k) = text.split_once(':').ok_or("no `:`")?;
            Ok([number(q)?, number(k)?])
        };
        match name {
            "kv" => {
                let scales = text.strip_prefix("e4m3/").ok_or("not e4m3/SCALES")?;
                self.kv_scales = Some(value(&SCALES, scales)?);
            }
            "lengths" => self.lengths = text.split(',').map(pair).collect::<Result<_, _>>()?,
            "room" => self.room = number(text)?,
            "queries" => self.queries = value(&QUERIES, text)?,
            "cache" => {
                let rows = |name| text.strip_prefix(name).map(positive).transpose();
                self.cache = match (rows("pages")?, rows("starts-pages")?) {
                    (Some(rows), _) => Cache::Paged(rows),
                    (_, Some(rows)) => Cache::PagedStarts(rows),
                    _ => value(&CACHES, text)?,
                };
            }
            "order" => self.order = value(&ORDERS, text)?,
            "gap" => self.gap = number(text)?,
            "causal" => self.causal = Some(value(&ALIGNMENTS, text)?),
            "window" => self.window = window_of(text)?,
            "scale" => self.scale = Some(number(text)?),
            "softcap" => self.softcap = Some(number(text)?),
            "alibi" => self.alibi = Some(value(&ALIBI, text)?),
            "bias" => {
                let (element, whole) = text.split_once(':').ok_or("no `:`")?;
                let (element, whole) = (value(&BIASES, element)?, whole_of(whole)?);
                self.bias = Some(Bias { element, whole });
            }
            "mask" => {
                let (element, whole) = text.split_once(':').ok_or("no `:`")?;
                let (element, whole) = (value(&MASKS, element)?, whole_of(whole)?);
                if element == MaskType::Bit && !whole[3] {
                    return Err("bits are one for each key".into());
                }
                self.mask = Some(MaskCase { element, whole });
            }
            "ranges" => self.ranges = number(text)?,
            "out-dtype" if text == "f32" => self.wide_out = true,
            "splits" => {
                self.splits = match text.strip_prefix("keys") {
                    Some(keys) => Splits::Keys(positive(keys)?),
                    None => value(&[("one", Splits::One), ("auto", Splits::Auto)], text)?,
                }
            }
            "spread" => self.spread = number(text)?,
            "first" => self.first = number(text)?,
            "seed" => self.seed = number(text)?,
            _ => return Err("not part of a case".into()),
        }
        Ok(())
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match number(text)? {
        0 => Err("0, which must be more".into()),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        for line in [
            "serving bf16 kv=e4m3/head h2x4 d128/64 lengths=3:70,0:5 room=2 queries=packed-used cache=pages16 order=chunked gap=3 \
             causal=bottom-right window=5,-1 scale=-5e-1 softcap=3e1 alibi=sequence sink bias=f32:b--k mask=bit:-hqk ranges=2 \
             out-dtype=f32 splits=keys64 spread=1e1 first=2 hostile seed=7",
            "serving sm_90a f16 h1x1 d576/512 lengths=1:1 queries=dense cache=starts-pages3 order=heads-first latent causal=top-left \
             alibi=head bias=same:---- mask=byte:---- splits=auto seed=0",
            "serving f16 h1x1 d1/1 lengths=0:0 cache=dense-used seed=18446744073709551615",
        ] {
            let case: ServingCase = line.parse().unwrap();
            assert_eq!(case.to_string(), line);
        }
    }

    #[test]
    fn nonsense_is_refused_word_by_word() {
        for bad in [
            "quick",
            "f32",
            "h2",
            "h0x1",
            "d32",
            "d0/1",
            "lengths=",
            "lengths=1",
            "lengths=1:-1",
            "kv=e5m2/head",
            "kv=e4m3/row",
            "queries=some",
            "cache=pages0",
            "cache=pages",
            "cache=disk",
            "order=any",
            "causal=sideways",
            "window=1",
            "alibi=all",
            "bias=f32:bhqx",
            "bias=f32:bhq",
            "mask=bit:bhq-",
            "out-dtype=f16",
            "splits=keys0",
            "splits=many",
            "seed=-1",
            "\u{fc}",
        ] {
            let error = format!("serving {bad}").parse::<ServingCase>();
            assert!(error.unwrap_err().starts_with(bad), "{bad}");
        }
        assert!("fused f16".parse::<ServingCase>().is_err());
        assert!("".parse::<ServingCase>().is_err());
    }
}
