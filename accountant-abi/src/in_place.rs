//! What the agent and the programs that read rule counters in place say to each other.
//!
//! Offsets of kernel structures come from the running kernel's BTF and are handed over in [`Fields`] before the programs
//! are loaded, as read-only data that the verifier knows; nothing about the kernel's layout is assumed here.

/// How many counters one run reads at most; more are read in several runs.
pub const CAPACITY: u32 = 32_768;
/// How many rules one walk can come by at most.
pub const MAX_RULES: u32 = 1 << 18;
/// How many processors' counters can be summed.
pub const MAX_CPUS: u32 = 512;
/// Length of a chain's name with its terminating zero at most (`NFT_NAME_MAXLEN`, linux/netfilter/nf_tables.h).
pub const CHAIN_NAME: usize = 256;
/// How many chains can be asked for in one walk.
pub const MAX_CHAINS: u32 = 1 << 16;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Byte offsets in structures of the running kernel.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Fields {
            $($(#[$doc])* pub $name: u32,)*
        }
    };
}

fields! {
    /// `task_struct.nsproxy`
    task_nsproxy,
    /// `nsproxy.net_ns`
    nsproxy_net,
    /// `net.nf.hooks_ipv4`: an array of pointers, one a hook.
    net_hooks_ipv4,
    /// `net.nf.hooks_ipv6`
    net_hooks_ipv6,
    /// `nf_hook_entries.num_hook_entries`, two bytes.
    entries_count,
    /// `nf_hook_entries.hooks`: what is called, one behind the other.
    entries_hooks,
    /// Size of `nf_hook_entry`.
    entry_size,
    /// `nf_hook_entry.priv`
    entry_priv,
    /// `bpf_array.pptrs`: where a per-CPU array map keeps its per-CPU pointers.
    array_pptrs,
    /// `xt_table.name`, an array of characters.
    table_name,
    /// `xt_table.af`, one byte.
    table_af,
    /// `xt_table.private`
    table_private,
    /// `xt_table_info.size`, four bytes.
    info_size,
    /// `xt_table_info.number`, four bytes.
    info_number,
    /// `xt_table_info.entries`: the rules, one behind the other.
    info_entries,
    /// `nft_chain.table`
    chain_table,
    /// `nft_chain.list`, its place among its table's chains.
    chain_list,
    /// `nft_chain.rules`, a list head.
    chain_rules,
    /// `nft_chain.name`, a pointer.
    chain_name,
    /// `nft_chain.blob_gen_0`: the rules that packets see in even generations; those of odd ones are in the next word.
    chain_blob,
    /// `nft_rule_blob.data`: the rules, one behind the other.
    blob_data,
    /// The bit of `nft_rule_dp.is_last` in its first eight bytes, behind which the expressions are.
    packed_last_shift,
    /// How far `nft_rule_dp.handle` is from the lowest bit there.
    packed_handle_shift,
    /// How many bits it has.
    packed_handle_bits,
    /// The same of `nft_rule_dp.dlen`.
    packed_dlen_shift,
    /// How many bits it has.
    packed_dlen_bits,
    /// `nft_table.chains`, a list head.
    nft_chains,
    /// `nft_table.name`, a pointer.
    nft_name,
    /// The eight bytes with `nft_table.family`, a bit field.
    nft_family,
    /// How far the family is from the lowest bit there.
    nft_family_shift,
    /// How many bits it has.
    nft_family_bits,
    /// `nft_rule.list`
    rule_list,
    /// The eight bytes with `nft_rule.handle`, `genmask` and `dlen`, bit fields.
    rule_word,
    /// How far the handle is from the lowest bit there.
    rule_handle_shift,
    /// How many bits it has.
    rule_handle_bits,
    /// The same of `genmask`.
    rule_genmask_shift,
    /// How many bits it has.
    rule_genmask_bits,
    /// The same of `dlen`, the length of the expressions.
    rule_dlen_shift,
    /// How many bits it has.
    rule_dlen_bits,
    /// `nft_rule.data`: the expressions, one behind the other.
    rule_data,
    /// `nft_expr_ops.size`, four bytes.
    ops_size,
    /// `nft_expr_ops.type`
    ops_type,
    /// `nft_expr_type.name`, a pointer.
    type_name,
    /// `nft_expr.data`: what an expression keeps; a counter keeps its per-CPU pointer there.
    expr_data,
    /// `net.nft.gencursor`, one byte.
    net_gencursor,
    /// `pt_regs`: the number of the system call.
    regs_call,
    /// The first argument: the socket.
    regs_socket,
    /// The second: the level.
    regs_level,
    /// The third: the option.
    regs_option,
    /// The fourth: its value.
    regs_value,
    /// The first three arguments of a 32-bit program's system call.
    regs_compat_first,
    /// The second: the level.
    regs_compat_level,
    /// The third: the option.
    regs_compat_option,
    /// `task_struct.thread_info`: four bytes that tell 32-bit programs.
    task_compat,
    /// Which bits do.
    task_compat_bits,
    /// The number of setsockopt.
    call_setsockopt,
    /// Its number in 32-bit programs.
    call_compat,
    /// The number of socketcall in 32-bit programs, or one that is none.
    call_socketcall,
    /// `task_struct.files`
    task_files,
    /// `files_struct.fdt`
    files_fdt,
    /// `fdtable.fd`
    fdt_fd,
    /// `file.private_data`
    file_private,
    /// `socket.sk`
    socket_sk,
    /// `sock.__sk_common.skc_net`
    sk_net,
    /// The number of a type that begins with two numbers of eight bytes (`timespec64`); zero where the kernel has no
    /// `bpf_rdonly_cast`.
    two_words,
}

/// Which counters a program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Reads {
    /// New ones: whether they can be read is found out.
    First = 0,
    /// Those of an earlier run. They can be read for as long as the rules are the same.
    Again = 1,
}

/// Sum of a counter over all processors: the two words that it consists of, in the order of the kernel's structure
/// (packets and bytes in `xt_counters`, bytes and packets in `nft_counter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// The first word.
    pub first: u64,
    /// The second.
    pub second: u64,
}

const _: () = assert!(size_of::<Sum>() == 16);

/// What a table of iptables-legacy is at one moment. While it stays the same, rules and counters are where they were.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Address of the `struct net`.
    pub net: u64,
    /// Address of the table's `private`: another one after each replacement.
    pub private: u64,
    /// Size of its rules in bytes.
    pub size: u32,
    /// Number of its rules.
    pub number: u32,
}

const _: () = assert!(size_of::<Stamp>() == 24);

/// A rule that a walk through nf_tables came by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkedRule {
    /// Its handle.
    pub handle: u64,
    /// The per-CPU pointer to its counter; zero if it has none.
    pub counter: u64,
    /// The number that the agent gave to its chain.
    pub chain: u32,
    /// Nothing.
    pub padding: u32,
}

const _: () = assert!(size_of::<WalkedRule>() == 24);

/// A rule as packets see it, in the memory that a chain has for them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedRule {
    /// Where it begins: eight bytes with its handle.
    pub head_at: u64,
    /// What they are.
    pub head: u64,
    /// Where the per-CPU pointer to its counter stands; zero if it has none.
    pub counter_at: u64,
    /// That pointer.
    pub counter: u64,
    /// Where its chain has the pointer to that memory, for even generations.
    pub chain_at: u64,
    /// That pointer, in the present generation.
    pub blob: u64,
    /// The number that the agent gave to its chain.
    pub chain: u32,
    /// Nothing.
    pub padding: u32,
}

const _: () = assert!(size_of::<PackedRule>() == 56);

/// The per-CPU offsets: what has to be added to a per-CPU pointer to get the address on a processor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOffsets {
    /// One each; only possible processors have one.
    pub offsets: [u64; MAX_CPUS as usize],
}

/// A chain's name as a key: zeros behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainKeyName {
    /// The characters.
    pub bytes: [u8; CHAIN_NAME],
}

/// What a program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// All was read, of one piece.
    Done = 0,
    /// The table is not there.
    NoTable = 1,
    /// The table is another one by now.
    Changed = 2,
    /// An address could not be read, or an offset is beyond the table.
    Unreadable = 3,
    /// There was more than room for it.
    Full = 4,
}

impl Outcome {
    /// The outcome that a program returned; anything unknown counts as unreadable.
    pub fn of(code: u32) -> Self {
        [Self::Done, Self::NoTable, Self::Changed, Self::Unreadable, Self::Full]
            .into_iter()
            .find(|outcome| *outcome as u32 == code)
            .unwrap_or(Self::Unreadable)
    }
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers without padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::Fields {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::ChainKeyName {}
    // SAFETY: the same.
    unsafe impl aya::Pod for super::CpuOffsets {}
}
