"""Compiles a kernel for a GPU that is not here; reads what the binary uses.

Triton can compile for a GPU without having one, and it brings NVIDIA's tools
for reading a binary back. AMD's compiler writes the same figures into its
assembly.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path


def compiled(entry, target: str):
    """Compile one `Compile` entry for ``target``, such as sm_90 or gfx942."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target.startswith("sm_"):
        gpu = GPUTarget("cuda", int(target[3:]), 32)
    else:
        gpu = GPUTarget("hip", target, 64)
    signature, constants, divisible = {}, {}, {}
    for position, name in enumerate(entry.kernel.arg_names):
        if name in entry.constants:
            signature[name] = "constexpr"
            constants[position,] = entry.constants[name]
            continue
        kind, _, multiple = entry.signature[name].partition(":")
        signature[name] = kind
        # PyTorch aligns its tensors; a divisible integer is marked "i32:16"
        if kind.startswith("*") or multiple:
            divisible[position,] = [["tt.divisibility", 16]]
    source = ASTSource(entry.kernel, signature, constants, divisible)
    options = {
        "num_warps": entry.num_warps,
        "num_stages": entry.num_stages,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=gpu, options=options)


def usage(binary, target: str) -> dict:
    """Registers, stack, shared memory and instructions of a binary."""
    read = read_nvidia if target.startswith("sm_") else read_amd
    figures = read(binary)
    figures["shared"] = max(binary.metadata.shared, figures.get("shared", 0))
    return figures


def read_nvidia(binary) -> dict:
    """Registers and instruction counts, read by the NVIDIA tools in Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()

        def dump(option):
            command = [tools / "cuobjdump", option, file.name]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout

        usage = dict(re.findall(r"\b(REG|STACK):(\d+)", dump("-res-usage")))
        code = dump("-sass")
    # /*0010*/  @!P0 LDG.E.128 R4, [R2.64] ;  with or without a predicate
    opcodes = Counter(
        re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][A-Z0-9_]+)", code)
    )
    opcodes.pop("NOP", None)
    counted = ("HMMA", "HGMMA", "UTCHMMA", "FFMA", "LDG", "LDGSTS")
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "instructions": opcodes.total(),
        **{name.lower(): opcodes[name] for name in (*counted, "LDL", "STL")},
    }


def read_amd(binary) -> dict:
    """The same from AMD's assembly; `registers` are its vector registers."""
    code = binary.asm["amdgcn"]

    def field(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    opcodes = Counter(re.findall(r"^\s+([a-z]+_\w+)", code, re.M))
    return {
        "registers": field("vgpr_count"),
        "scalar_registers": field("sgpr_count"),
        "stack": field("private_segment_fixed_size"),
        "shared": field("group_segment_fixed_size"),
        "instructions": opcodes.total(),
        "mfma": sum(n for op, n in opcodes.items() if op.startswith("v_mfma")),
    }
