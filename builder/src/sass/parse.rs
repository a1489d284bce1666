//! Reads what nvdisasm writes of one kernel.

use std::collections::BTreeMap;

/// One machine instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Where it lies, in bytes from the kernel's first instruction.
    pub address: u32,
    /// Its guard: "@P0", "@!UP1", or nothing.
    pub guard: String,
    /// Opcode with modifiers: "HGMMA.64x128x16.F32.BF16".
    pub opcode: String,
    /// The rest, without the semicolon.
    pub operands: String,
    /// The line of PTX that it is from, counted from 1; 0 if nvdisasm does not say.
    pub line: usize,
}

impl Instruction {
    /// The opcode without modifiers.
    pub fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Whether the opcode has this modifier.
    pub fn has(&self, modifier: &str) -> bool {
        self.opcode.split('.').skip(1).any(|m| m == modifier)
    }

    /// The operands, one after the other. A comma within brackets or parentheses separates nothing.
    pub fn operand_list(&self) -> Vec<&str> {
        let (mut list, mut depth, mut start) = (Vec::new(), 0usize, 0);
        for (at, byte) in self.operands.bytes().enumerate() {
            match byte {
                b'[' | b'(' => depth += 1,
                b']' | b')' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => {
                    list.push(self.operands[start..at].trim());
                    start = at + 1;
                }
                _ => {}
            }
        }
        list.push(self.operands[start..].trim());
        list.retain(|o| !o.is_empty());
        list
    }

    /// The labels among the operands: `` `(.L_x_3) ``, or `(*"BRANCH_TARGETS .L_x_1,.L_x_2"*)` of an indexed branch.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let pieces = self.operands.split("`(").skip(1);
        let plain = pieces.filter_map(|p| p.split_once(')').map(|(label, _)| label));
        let indexed = self.operands.split_once("BRANCH_TARGETS ");
        let list = indexed.and_then(|(_, after)| after.split('"').next());
        plain.chain(list.into_iter().flat_map(|l| l.split(',').map(str::trim)))
    }
}

/// The machine code of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// In the order in which they lie in memory.
    pub instructions: Vec<Instruction>,
    /// The index of the instruction that follows each label.
    pub labels: BTreeMap<String, usize>,
}

impl Function {
    /// Reads the text of `nvdisasm -c`, of which only the section of the entry `name` counts.
    ///
    /// `Err` says what is missing or not understood.
    pub fn parse(text: &str, name: &str) -> Result<Self, String> {
        let start = format!(".text.{name}:");
        let mut function = Self::default();
        let (mut inside, mut line) = (false, 0);
        for (number, raw) in text.lines().enumerate() {
            let bare = raw.trim();
            if bare == start {
                inside = true;
            } else if bare.starts_with("//----") || bare.starts_with(".section") {
                inside = false;
            } else if !inside {
                continue;
            } else if let Some(comment) = bare.strip_prefix("//##") {
                line = line_of(comment).unwrap_or(line);
            } else if bare.starts_with("/*") {
                let instruction = instruction(bare, line)
                    .ok_or_else(|| format!("line {}: `{bare}`", number + 1))?;
                // The encoding, if there is any, has a comment of its own in the next line.
                function.instructions.extend(instruction);
            } else if let Some(label) = bare.strip_suffix(':')
                && !label.contains(char::is_whitespace)
            {
                let next = function.instructions.len();
                function.labels.insert(label.to_owned(), next);
            }
        }
        if function.instructions.is_empty() {
            return Err(format!("no instruction of {name} in what nvdisasm wrote"));
        }
        Ok(function)
    }
}

/// The line of PTX of a comment `File ".nv_debug_ptx_txt", line 31`.
fn line_of(comment: &str) -> Option<usize> {
    let (_, after) = comment.split_once("\", line ")?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// `/*0180*/ @!P0 BRA `(.L_x_2) ;`. `Some(None)` for a comment that holds an encoding only.
fn instruction(text: &str, line: usize) -> Option<Option<Instruction>> {
    let (address, rest) = text.strip_prefix("/*")?.split_once("*/")?;
    if address.trim().starts_with("0x") {
        return Some(None);
    }
    let address = u32::from_str_radix(address.trim(), 16).ok()?;
    let rest = rest.split("/*").next()?.trim();
    let rest = rest.strip_suffix(';').unwrap_or(rest).trim();
    let (guard, rest) = match rest.starts_with('@') {
        true => rest.split_once(char::is_whitespace)?,
        false => ("", rest),
    };
    let rest = rest.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (opcode, operands) = rest.split_at(end);
    let starts_well = |c: char| c.is_ascii_uppercase();
    opcode.starts_with(starts_well).then(|| {
        Some(Instruction {
            address,
            guard: guard.to_owned(),
            opcode: opcode.to_owned(),
            operands: operands.trim().to_owned(),
            line,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
	.target	sm_90a

//--------------------- .text.other --------------------------
	.section	.text.other,"ax",@progbits
other:
.text.other:
        /*0000*/                   EXIT ;

//--------------------- .text.k --------------------------
	.section	.text.k,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=168"
        .size           k,(.L_x_36 - k)
k:
.text.k:
	//## File ".nv_debug_ptx_txt", line 31
        /*0000*/                   MOV R1, c[0x0][0x28] ;                      /* 0x00000a0000017a02 */
                                                                               /* 0x000fc40000000f00 */
.L_x_4:
	//## File ".nv_debug_ptx_txt", line 103 inlined at "x", line 2
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5+0x200], R6 ;
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R88, R52, gdesc[UR8].tnspB, R88, gsb0 ;
        /*0030*/              @!P0 BRA `(.L_x_4) ;
        /*0040*/                   BRA.DIV ~URZ, `(.L_x_5);
.L_x_5:
.L_x_6:
        /*0050*/                   EXIT ;
.L_x_36:


//--------------------- .nv.constant0 --------------------------
	.section	.nv.constant0.k,"a",@progbits
        /*0000*/ 	.byte	0x00
"#;

    #[test]
    fn the_entry_s_own_section_is_read() {
        let function = Function::parse(TEXT, "k").unwrap_or_default();
        let opcodes: Vec<_> = function.instructions.iter().map(|i| i.base()).collect();
        assert_eq!(opcodes, ["MOV", "SYNCS", "HGMMA", "BRA", "BRA", "EXIT"]);
        let lines: Vec<_> = function.instructions.iter().map(|i| i.line).collect();
        assert_eq!(lines, [31, 103, 103, 103, 103, 103]);
        assert_eq!(function.labels[".L_x_4"], 1);
        assert_eq!(function.labels[".L_x_5"], 5);
        assert_eq!(function.labels[".L_x_36"], 6);
        let branch = &function.instructions[3];
        assert_eq!((branch.address, branch.guard.as_str()), (0x30, "@!P0"));
        assert_eq!(branch.labels().collect::<Vec<_>>(), [".L_x_4"]);
        let product = &function.instructions[2];
        assert_eq!(
            product.operand_list(),
            ["R88", "R52", "gdesc[UR8].tnspB", "R88", "gsb0"]
        );
        assert!(product.has("BF16") && !product.has("F16"));
        let divergent = &function.instructions[4];
        assert_eq!(
            divergent.labels().next(),
            Some(".L_x_5"),
            "no space before the semicolon"
        );
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(Function::parse("", "k").is_err());
        assert!(Function::parse(TEXT, "z").is_err());
        for bad in ["/*xyz*/ MOV R1, R2 ;", "/*0000*/", "/*0000*/ @P0"] {
            let text = format!(".text.k:\n{bad}\n");
            assert!(Function::parse(&text, "k").is_err(), "{bad}");
        }
    }
}
