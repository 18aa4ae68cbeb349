//! Which fields of which kernel structures the programs read, looked up in the kernel's own description of its types.

use super::btf::{Btf, Place};
use super::cast::Cast;
use super::reason::CannotHere;
use accountant_abi::in_place::Fields;

/// Where the kernel shows the descriptions.
const FOLDER: &str = "/sys/kernel/btf";

/// Whose rules are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Those of iptables-legacy.
    Legacy,
    /// The same, and the system calls that replace them.
    LegacyRewrites,
    /// Those of nf_tables.
    Nftables,
}

impl Rules {
    /// The module that has their types, where they are not in the kernel itself.
    fn module(self) -> &'static str {
        match self {
            Self::Legacy | Self::LegacyRewrites => "x_tables",
            Self::Nftables => "nf_tables",
        }
    }
}

/// Looks up where all fields are that reading these rules needs, and the function that reads faster, if there is one.
pub(crate) fn fields(rules: Rules) -> Result<(Fields, Option<Cast>), CannotHere> {
    with_types(rules.module(), |types| {
        let cast = Cast::look(types);
        let two_words = cast.map_or(0, |cast| cast.two_words);
        Ok((Fields { two_words, ..find(types, rules)? }, cast))
    })
}

/// Looks something up in the types of the kernel and of one of its modules.
pub(crate) fn with_types<T>(
    module: &str,
    look_up: impl FnOnce(&Btf<'_>) -> Result<T, CannotHere>,
) -> Result<T, CannotHere> {
    let file = |name: &str| format!("{FOLDER}/{name}");
    let (kernel, module) = (file("vmlinux"), file(module));
    let bytes = std::fs::read(&kernel).map_err(|error| CannotHere::types(&kernel, error))?;
    let base = Btf::parse(&bytes, None).map_err(|error| (kernel.as_str(), error))?;
    let module_bytes = std::fs::read(&module).ok();
    let split = match &module_bytes {
        Some(bytes) => Some(Btf::parse(bytes, Some(&base)).map_err(|error| (module.as_str(), error))?),
        None => None,
    };
    look_up(split.as_ref().unwrap_or(&base))
}

fn find(types: &Btf<'_>, rules: Rules) -> Result<Fields, CannotHere> {
    let look = Lookup { types };
    let mut fields = Fields {
        task_nsproxy: look.byte("task_struct", "nsproxy")?,
        nsproxy_net: look.byte("nsproxy", "net_ns")?,
        net_hooks_ipv4: look.byte("net", "nf.hooks_ipv4")?,
        net_hooks_ipv6: look.byte("net", "nf.hooks_ipv6")?,
        entries_count: look.byte("nf_hook_entries", "num_hook_entries")?,
        entries_hooks: look.byte("nf_hook_entries", "hooks")?,
        entry_size: look.size("nf_hook_entry")?,
        entry_priv: look.byte("nf_hook_entry", "priv")?,
        array_pptrs: look.byte("bpf_array", "pptrs")?,
        ..Fields::default()
    };
    match rules {
        Rules::Legacy => look.legacy(&mut fields)?,
        Rules::LegacyRewrites => {
            look.legacy(&mut fields)?;
            look.system_calls(&mut fields)?;
        }
        Rules::Nftables => look.nftables(&mut fields)?,
    }
    Ok(fields)
}

pub(crate) struct Lookup<'a> {
    pub(crate) types: &'a Btf<'a>,
}

impl Lookup<'_> {
    fn legacy(&self, fields: &mut Fields) -> Result<(), CannotHere> {
        fields.table_name = self.byte("xt_table", "name")?;
        fields.table_af = self.byte("xt_table", "af")?;
        fields.table_private = self.byte("xt_table", "private")?;
        fields.info_size = self.byte("xt_table_info", "size")?;
        fields.info_number = self.byte("xt_table_info", "number")?;
        fields.info_entries = self.byte("xt_table_info", "entries")?;
        Ok(())
    }

    fn system_calls(&self, fields: &mut Fields) -> Result<(), CannotHere> {
        self.registers(fields)?;
        fields.task_files = self.byte("task_struct", "files")?;
        fields.files_fdt = self.byte("files_struct", "fdt")?;
        fields.fdt_fd = self.byte("fdtable", "fd")?;
        fields.file_private = self.byte("file", "private_data")?;
        fields.socket_sk = self.byte("socket", "sk")?;
        fields.sk_net = self.byte("sock", "__sk_common.skc_net.net")?;
        Ok(())
    }

    /// Where a system call's number and arguments are when it ends, and how 32-bit programs are told.
    ///
    /// Source: `arch/x86/include/asm/ptrace.h`, `.../thread_info.h` (`TS_COMPAT`), the tables of system calls.
    #[cfg(target_arch = "x86_64")]
    fn registers(&self, fields: &mut Fields) -> Result<(), CannotHere> {
        let register = |name| self.byte("pt_regs", name);
        fields.regs_call = register("orig_ax")?;
        fields.regs_socket = register("di")?;
        fields.regs_level = register("si")?;
        fields.regs_option = register("dx")?;
        fields.regs_value = register("r10")?;
        fields.regs_compat_first = register("bx")?;
        fields.regs_compat_level = register("cx")?;
        fields.regs_compat_option = register("dx")?;
        fields.task_compat = self.byte("task_struct", "thread_info.status")?;
        fields.task_compat_bits = 2;
        (fields.call_setsockopt, fields.call_compat, fields.call_socketcall) = (54, 366, 102);
        Ok(())
    }

    /// Source: `arch/arm64/include/asm/ptrace.h`, `.../thread_info.h` (`TIF_32BIT`). 32-bit programs of Arm have no
    /// socketcall.
    #[cfg(target_arch = "aarch64")]
    fn registers(&self, fields: &mut Fields) -> Result<(), CannotHere> {
        let regs = self.byte("pt_regs", "regs")?;
        fields.regs_call = self.byte("pt_regs", "syscallno")?;
        fields.regs_socket = self.byte("pt_regs", "orig_x0")?;
        (fields.regs_level, fields.regs_option, fields.regs_value) = (regs + 8, regs + 16, regs + 24);
        fields.regs_compat_first = fields.regs_socket;
        (fields.regs_compat_level, fields.regs_compat_option) = (regs + 8, regs + 16);
        fields.task_compat = self.byte("task_struct", "thread_info.flags")?;
        fields.task_compat_bits = 1 << 22;
        (fields.call_setsockopt, fields.call_compat, fields.call_socketcall) = (208, 294, u32::MAX);
        Ok(())
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn registers(&self, _: &mut Fields) -> Result<(), CannotHere> {
        Err(CannotHere::NoField("known way to pass arguments to system calls".into()))
    }

    fn nftables(&self, fields: &mut Fields) -> Result<(), CannotHere> {
        fields.chain_table = self.byte("nft_chain", "table")?;
        fields.chain_list = self.byte("nft_chain", "list")?;
        fields.chain_rules = self.byte("nft_chain", "rules")?;
        fields.chain_name = self.byte("nft_chain", "name")?;
        self.packed_rules(fields);
        fields.nft_chains = self.byte("nft_table", "chains")?;
        fields.nft_name = self.byte("nft_table", "name")?;
        (fields.nft_family, fields.nft_family_shift, fields.nft_family_bits) =
            self.bits("nft_table", "family")?;
        fields.rule_list = self.byte("nft_rule", "list")?;
        let (word, shift, bits) = self.bits("nft_rule", "handle")?;
        (fields.rule_word, fields.rule_handle_shift, fields.rule_handle_bits) = (word, shift, bits);
        (fields.rule_genmask_shift, fields.rule_genmask_bits) = self.beside(word, "nft_rule", "genmask")?;
        (fields.rule_dlen_shift, fields.rule_dlen_bits) = self.beside(word, "nft_rule", "dlen")?;
        fields.rule_data = self.byte("nft_rule", "data")?;
        fields.ops_size = self.byte("nft_expr_ops", "size")?;
        fields.ops_type = self.byte("nft_expr_ops", "type")?;
        fields.type_name = self.byte("nft_expr_type", "name")?;
        fields.expr_data = self.byte("nft_expr", "data")?;
        fields.net_gencursor = self.byte("net", "nft.gencursor")?;
        // A counter is two words, bytes and packets, behind a pointer that is all that the expression keeps.
        let words = [self.byte("nft_counter", "bytes")?, self.byte("nft_counter", "packets")?];
        if words != [0, 8] || self.byte("nft_counter_percpu_priv", "counter")? != 0 {
            return Err(CannotHere::NoField("nft_counter of a known form".into()));
        }
        Ok(())
    }

    /// Where rules are as packets see them (Linux 5.17); all zero in kernels that have them elsewhere.
    fn packed_rules(&self, fields: &mut Fields) {
        let found = || -> Result<Fields, CannotHere> {
            let mut found = Fields { chain_blob: self.byte("nft_chain", "blob_gen_0")?, ..*fields };
            found.blob_data = self.byte("nft_rule_blob", "data")?;
            let (last, dlen) = (self.bits("nft_rule_dp", "is_last")?, self.bits("nft_rule_dp", "dlen")?);
            let handle = self.bits("nft_rule_dp", "handle")?;
            found.packed_last_shift = last.1;
            (found.packed_handle_shift, found.packed_handle_bits) = (handle.1, handle.2);
            (found.packed_dlen_shift, found.packed_dlen_bits) = (dlen.1, dlen.2);
            let beside = self.byte("nft_chain", "blob_gen_1")? == found.chain_blob + 8;
            let packed = [last.0, dlen.0, handle.0, last.2] == [0, 0, 0, 1];
            let behind = self.byte("nft_rule_dp", "data")? == 8;
            if beside && packed && behind { Ok(found) } else { Err(CannotHere::NotYet) }
        };
        if let Ok(found) = found() {
            *fields = found;
        }
    }

    fn place(&self, structure: &str, path: &str) -> Result<Place, CannotHere> {
        let missing = || CannotHere::NoField(format!("{structure}.{path}"));
        self.types.place(structure, path).ok_or_else(missing)
    }

    /// A field that begins with a byte.
    pub(crate) fn byte(&self, structure: &str, path: &str) -> Result<u32, CannotHere> {
        let place = self.place(structure, path)?;
        if place.bit % 8 != 0 || place.bits != 0 {
            return Err(CannotHere::NoField(format!("{structure}.{path} at a whole byte")));
        }
        Ok(place.bit / 8)
    }

    fn size(&self, structure: &str) -> Result<u32, CannotHere> {
        self.types.size(structure).ok_or_else(|| CannotHere::NoField(structure.into()))
    }

    /// A bit field: the eight bytes that it is in, how far it is from the lowest bit there, and its size.
    fn bits(&self, structure: &str, path: &str) -> Result<(u32, u32, u32), CannotHere> {
        let place = self.place(structure, path)?;
        let (word, shift) = (place.bit / 64, place.bit % 64);
        let fits = place.bits > 0 && shift + place.bits <= 64 && cfg!(target_endian = "little");
        if !fits {
            return Err(CannotHere::NoField(format!("{structure}.{path} of bits in a word")));
        }
        Ok((word * 8, shift, place.bits))
    }

    fn beside(&self, word: u32, structure: &str, path: &str) -> Result<(u32, u32), CannotHere> {
        let (other, shift, bits) = self.bits(structure, path)?;
        if other != word {
            return Err(CannotHere::NoField(format!("{structure}.{path} beside the handle")));
        }
        Ok((shift, bits))
    }
}
