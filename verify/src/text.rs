//! Cases as lines of text, and back.
//!
//! ```text
//! fused sm_90a f16 b1 q37 k70 h2/1 d32/32 causal=bottom-right window=64,-1 scale=5e-1 softcap=3e1
//!     out-dtype=f32 scales=tensor,head,block128 q=heads-first+8@1,backwards,broadcast data=peaked poison seed=7
//! ```
//!
//! Words in any order; what is left out is as in [`Case::new`]. Scales are those of q, k and v, or the same for all.

use std::{fmt, str::FromStr};

use flashtile::{
    Algorithm, ArchChoice, CausalAlignment, DType, OutDType, ScaleLayout, Scales, Window,
};

use crate::{
    case::{Case, Placement, sizes},
    data::Distribution,
};

const TENSORS: [&str; 4] = ["q", "k", "v", "out"];
pub(crate) const ARCHES: [(&str, ArchChoice); 2] =
    [("sm_80", ArchChoice::Sm80), ("sm_90a", ArchChoice::Sm90a)];
const OUT_DTYPES: [(&str, OutDType); 3] = [
    ("f32", OutDType::F32),
    ("f16", OutDType::F16),
    ("bf16", OutDType::Bf16),
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.shape;
        write!(f, "{}", self.algorithm.as_str())?;
        if let Some((arch, _)) = ARCHES.iter().find(|(_, arch)| *arch == self.arch) {
            write!(f, " {arch}")?;
        }
        write!(
            f,
            " {} b{} q{} k{} h{}/{} d{}/{}",
            self.dtype.as_str(),
            s.batch,
            s.seqlen_q,
            s.seqlen_k,
            s.heads_q,
            s.heads_kv,
            s.head_dim_qk,
            s.head_dim_v
        )?;
        match self.causal {
            Some(CausalAlignment::BottomRight) => write!(f, " causal=bottom-right")?,
            Some(CausalAlignment::TopLeft) => write!(f, " causal=top-left")?,
            None => {}
        }
        if self.window != Window::default() {
            write!(f, " window={}", window_text(self.window))?;
        }
        if let Some(scale) = self.scale {
            write!(f, " scale={scale:e}")?;
        }
        if let Some(softcap) = self.softcap {
            write!(f, " softcap={softcap:e}")?;
        }
        if let Some((name, _)) = OUT_DTYPES.iter().find(|(_, out)| *out == self.out_dtype) {
            write!(f, " out-dtype={name}")?;
        }
        if self.scales != Scales::default() {
            write!(f, " scales={}", scales_text(&self.scales))?;
        }
        for (name, placement) in TENSORS.iter().zip(&self.placements) {
            if *placement != Placement::default() {
                write!(f, " {name}={placement}")?;
            }
        }
        if self.data != Distribution::Normal {
            write!(f, " data={}", self.data.as_str())?;
        }
        if self.poison {
            write!(f, " poison")?;
        }
        write!(f, " seed={}", self.seed)
    }
}

/// `heads-first+PAD@OFFSET,backwards,broadcast`, as much of it as applies.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.heads_first {
            "heads-first"
        } else {
            "seqlen-first"
        };
        write!(f, "{order}+{}@{}", self.pad, self.offset)?;
        if self.backwards {
            write!(f, ",backwards")?;
        }
        if self.broadcast {
            write!(f, ",broadcast")?;
        }
        Ok(())
    }
}

impl FromStr for Placement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let place = parts.next().unwrap_or_default();
        let (order, numbers) = place.split_once('+').ok_or("no `+`")?;
        let (pad, offset) = numbers.split_once('@').ok_or("no `@`")?;
        let mut placement = Self {
            heads_first: match order {
                "heads-first" => true,
                "seqlen-first" => false,
                other => return Err(format!("`{other}` is neither heads-first nor seqlen-first")),
            },
            pad: number(pad)?,
            offset: number(offset)?,
            ..Self::default()
        };
        for flag in parts {
            match flag {
                "backwards" => placement.backwards = true,
                "broadcast" => placement.broadcast = true,
                other => return Err(format!("`{other}` is neither backwards nor broadcast")),
            }
        }
        Ok(placement)
    }
}

fn scales_text(scales: &Scales) -> String {
    let text = |layout: ScaleLayout| match layout {
        ScaleLayout::One => "one".into(),
        ScaleLayout::PerTensor => "tensor".into(),
        ScaleLayout::PerHead => "head".into(),
        ScaleLayout::PerBlock { rows } => format!("block{rows}"),
    };
    match *scales == Scales::all(scales.q) {
        true => text(scales.q),
        false => [scales.q, scales.k, scales.v].map(text).join(","),
    }
}

fn scales_of(text: &str) -> Result<Scales, String> {
    let layout = |text: &str| match text {
        "one" => Ok(ScaleLayout::One),
        "tensor" => Ok(ScaleLayout::PerTensor),
        "head" => Ok(ScaleLayout::PerHead),
        _ => match text.strip_prefix("block").map(number) {
            Some(rows) => Ok(ScaleLayout::PerBlock { rows: rows? }),
            None => Err(format!("`{text}` is none of one, tensor, head, blockROWS")),
        },
    };
    match text.split(',').collect::<Vec<_>>().as_slice() {
        [all] => Ok(Scales::all(layout(all)?)),
        [q, k, v] => Ok(Scales {
            q: layout(q)?,
            k: layout(k)?,
            v: layout(v)?,
        }),
        _ => Err("neither one kind of scales nor three".into()),
    }
}

/// `LEFT,RIGHT`, -1 for a side without bound.
pub(crate) fn window_text(window: Window) -> String {
    let side = |side: Option<u32>| side.map_or("-1".into(), |n| n.to_string());
    format!("{},{}", side(window.left), side(window.right))
}

/// What [`window_text`] is of.
pub(crate) fn window_of(text: &str) -> Result<Window, String> {
    let side = |text| match text {
        "-1" => Ok(None),
        keys => number(keys).map(Some),
    };
    let (left, right) = text.split_once(',').ok_or("no `,`")?;
    Ok(Window {
        left: side(left)?,
        right: side(right)?,
    })
}

pub(crate) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("an empty line".into());
        }
        let mut case = Self::new(DType::F16, sizes(1, 1, [1, 1], 1));
        for word in text.split_whitespace() {
            case.read_word(word)
                .map_err(|reason| format!("{word}: {reason}"))?;
        }
        Ok(case)
    }
}

impl Case {
    fn read_word(&mut self, word: &str) -> Result<(), String> {
        if let Some((name, value)) = word.split_once('=') {
            return self.read_option(name, value);
        }
        if let Some(&algorithm) = Algorithm::ALL.iter().find(|a| a.as_str() == word) {
            self.algorithm = algorithm;
            return Ok(());
        }
        if let Some(&(_, arch)) = ARCHES.iter().find(|(name, _)| *name == word) {
            self.arch = arch;
            return Ok(());
        }
        if let Some(&dtype) = DType::ALL.iter().find(|d| d.as_str() == word) {
            self.dtype = dtype;
            return Ok(());
        }
        if word == "poison" {
            self.poison = true;
            return Ok(());
        }
        let pair = |rest: &str| -> Result<(usize, usize), String> {
            let (a, b) = rest.split_once('/').ok_or("no `/`")?;
            Ok((number(a)?, number(b)?))
        };
        let s = &mut self.shape;
        match word.split_at_checked(1) {
            Some(("b", rest)) => s.batch = number(rest)?,
            Some(("q", rest)) => s.seqlen_q = number(rest)?,
            Some(("k", rest)) => s.seqlen_k = number(rest)?,
            Some(("h", rest)) => (s.heads_q, s.heads_kv) = pair(rest)?,
            Some(("d", rest)) => (s.head_dim_qk, s.head_dim_v) = pair(rest)?,
            _ => return Err("not part of a case".into()),
        }
        Ok(())
    }

    fn read_option(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "causal" if value == "bottom-right" => self.causal = Some(CausalAlignment::BottomRight),
            "causal" if value == "top-left" => self.causal = Some(CausalAlignment::TopLeft),
            "window" => self.window = window_of(value)?,
            "scale" => self.scale = Some(number(value)?),
            "softcap" => self.softcap = Some(number(value)?),
            "out-dtype" => {
                let known = OUT_DTYPES.iter().find(|(name, _)| *name == value);
                let (_, out) = known.ok_or_else(|| format!("`{value}` is no type of outputs"))?;
                self.out_dtype = *out;
            }
            "scales" => self.scales = scales_of(value)?,
            "data" => self.data = value.parse()?,
            "seed" => self.seed = number(value)?,
            _ => {
                let tensor = TENSORS.iter().position(|tensor| *tensor == name);
                self.placements[tensor.ok_or("not part of a case")?] = value.parse()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        let line = "two-pass sm_80 bf16 b2 q37 k70 h6/2 d40/24 causal=top-left window=5,-1 scale=-5e-1 softcap=3e1 \
                    out-dtype=f32 q=heads-first+8@1,backwards,broadcast out=seqlen-first+0@3 data=1e4 poison seed=7";
        let case: Case = line.parse().unwrap();
        assert_eq!(case.to_string(), line);
        assert!(case.poison && case.placements[0].broadcast && case.window.right.is_none());
        assert_eq!(case.data, Distribution::Large);
    }

    #[test]
    fn scales_are_told_once_or_for_each_tensor() {
        for line in [
            "fused sm_90a e4m3 b1 q1 k1 h1/1 d1/1 out-dtype=f16 scales=tensor seed=0",
            "fused e4m3 b1 q1 k1 h1/1 d1/1 out-dtype=bf16 scales=one,head,block128 seed=0",
            "fused e4m3 b1 q1 k1 h1/1 d1/1 scales=block256 seed=0",
        ] {
            let case: Case = line.parse().unwrap();
            assert_eq!(case.to_string(), line);
        }
        let line = "e4m3 scales=head,head,head";
        let case: Case = line.parse().unwrap();
        assert_eq!(case.scales, Scales::all(ScaleLayout::PerHead));
    }

    #[test]
    fn nonsense_is_refused_word_by_word() {
        for bad in [
            "quick",
            "b",
            "b-1",
            "h2",
            "d32",
            "q1.5",
            "causal=sideways",
            "window=1",
            "window=-2,0",
            "window=0,4294967296",
            "scale=big",
            "out-dtype=e4m3",
            "scales=many",
            "scales=head,head",
            "scales=block",
            "scales=one,one,block-1",
            "q=upwards+0@0",
            "q=heads-first",
            "q=heads-first+0@0,sideways",
            "data=nice",
            "seed=-1",
            "\u{fc}=1",
            "\u{fc}",
        ] {
            let error = bad.parse::<Case>().unwrap_err();
            assert!(error.starts_with(bad), "{error}");
        }
    }
}
