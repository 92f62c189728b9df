"""Rules that the kernels' source must keep, checked on the source itself.

Each guards against a mistake that no test on a CPU can show, because the
interpreter and a GPU treat it differently or because it only costs time.
"""

import ast
import inspect
import pathlib

import pytest

import lab.kernels
from lab.kernels.declaration import all_declarations

FILES = sorted(pathlib.Path(lab.kernels.__path__[0]).glob("*.py"))
TREES = {file.name: ast.parse(file.read_text()) for file in FILES}

# the functions that may stall the GPU, as (file, function): reason
MAY_SYNCHRONISE: dict[tuple[str, str], str] = {}

# pointers to values that are fp32 whatever the dtype of the tokens
ALWAYS_FP32 = {"weights_ptr", "grad_weights_ptr"}
# pointers of helpers, which no declaration names, to integers
HELPERS_INTEGERS = {"list_ptr"}


def is_jit(function):
    return any("jit" in ast.unparse(d) for d in function.decorator_list)


def functions(keep):
    return [
        pytest.param(file, node, id=node.name)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and keep(node)
    ]


KERNELS = functions(is_jit)
LAUNCHERS = functions(lambda node: node.name.endswith("_triton"))


def calls(node, name):
    return [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == name
    ]


def parents(node):
    return {
        child: parent
        for parent in ast.walk(node)
        for child in ast.iter_child_nodes(parent)
    }


def pointers(kernel, expression):
    """The pointer arguments that an address is made from."""
    names, seen = {ast.unparse(expression)}, set()
    todo = [expression]
    while todo:
        for name in ast.walk(todo.pop()):
            if not isinstance(name, ast.Name) or name.id in seen:
                continue
            seen.add(name.id)
            todo += [
                assign.value
                for assign in ast.walk(kernel)
                if isinstance(assign, ast.Assign)
                and ast.unparse(assign.targets[0]) == name.id
                and "_ptr" in ast.unparse(assign.value)
            ]
    names |= seen
    return {name for name in names if name.endswith("_ptr")}


def integer_pointers():
    """The names that the declarations give to pointers to integers."""
    return {
        name
        for declaration in all_declarations()
        for entry in declaration.compiles
        for name, kind in entry.signature.items()
        if kind.startswith("*i")
    }


@pytest.mark.parametrize("file, kernel", KERNELS)
def test_loaded_values_are_widened_before_arithmetic(file, kernel):
    # the interpreter multiplies the raw bits of bfloat16
    above = parents(kernel)
    exempt = integer_pointers() | ALWAYS_FP32 | HELPERS_INTEGERS
    for load in calls(kernel, "tl.load"):
        if pointers(kernel, load.args[0]) & exempt:
            continue
        holder = above[load]
        if isinstance(holder, ast.Attribute) and holder.attr == "to":
            continue
        assert isinstance(holder, ast.Assign), ast.unparse(holder)
        name = ast.unparse(holder.targets[0])
        used = [
            node
            for node in ast.walk(kernel)
            if isinstance(node, ast.Name)
            and node.id == name
            and isinstance(node.ctx, ast.Load)
        ]
        for node in used:
            user = above[node]
            # `.dtype` asks for the type and computes nothing
            widened = isinstance(user, ast.Attribute) and user.attr in (
                "to",
                "dtype",
            )
            dotted = isinstance(user, ast.Call) and (
                ast.unparse(user.func)
                in ("tl.dot", "tl.trans", "exact_dot", "add_product")
            )
            # once widened under its own name, the later uses are safe
            rebound = any(
                isinstance(assign, ast.Assign)
                and ast.unparse(assign.targets[0]) == name
                and f"{name}.to(tl.float32)" in ast.unparse(assign.value)
                for assign in ast.walk(kernel)
            )
            assert widened or dotted or rebound, (
                f"{file}: {name} is used before .to(tl.float32):"
                f" {ast.unparse(user)}"
            )


@pytest.mark.parametrize("file, kernel", KERNELS)
def test_every_dot_names_its_precision(file, kernel):
    # without it fp32 would be tf32 on a GPU, but exact here
    for dot in calls(kernel, "tl.dot"):
        named = {keyword.arg for keyword in dot.keywords}
        assert "input_precision" in named, f"{file}: {ast.unparse(dot)}"


@pytest.mark.parametrize("file, kernel", KERNELS)
def test_no_block_pointers(file, kernel):
    # removed from Triton 3.9
    assert "make_block_ptr" not in ast.unparse(kernel)


def wide(expression):
    return "tl.int64" in ast.unparse(expression)


@pytest.mark.parametrize("file, kernel", KERNELS)
def test_row_offsets_are_64_bits_wide(file, kernel):
    # 1000 x 2048 x 2048 overflows 32 bits without any warning
    above = parents(kernel)
    narrow = set()
    for source in ("tl.program_id", "tl.load"):
        for call in calls(kernel, source):
            holder = above[call]
            is_index = source == "tl.program_id" or (
                pointers(kernel, call.args[0]) & integer_pointers()
            )
            if is_index and isinstance(holder, ast.Assign):
                narrow.add(ast.unparse(holder.targets[0]))
    for product in ast.walk(kernel):
        if not isinstance(product, ast.BinOp):
            continue
        if not isinstance(product.op, ast.Mult):
            continue
        for side in (product.left, product.right):
            bare = side.value if isinstance(side, ast.Subscript) else side
            other = product.right if side is product.left else product.left
            is_stride = any(
                isinstance(n, ast.Name) and n.id in kernel_sizes(kernel)
                for n in ast.walk(other)
            )
            if is_stride and not wide(product):
                assert ast.unparse(bare) not in narrow, (
                    f"{file}: {ast.unparse(product)} may overflow"
                )


def kernel_sizes(kernel):
    """Arguments that are sizes and strides, known at the launch."""
    return {
        argument.arg
        for argument in kernel.args.args
        if argument.annotation is None and not argument.arg.endswith("_ptr")
    }


@pytest.mark.parametrize("file, launcher", LAUNCHERS)
def test_launchers_never_wait_for_the_gpu(file, launcher):
    waiting = [
        node.attr
        for node in ast.walk(launcher)
        if isinstance(node, ast.Attribute)
        and node.attr in ("item", "tolist", "cpu", "numpy", "nonzero")
    ]
    assert not waiting or (file, launcher.name) in MAY_SYNCHRONISE, waiting


def test_every_kernel_is_declared_for_compilation():
    declared = {
        entry.kernel.__name__
        for declaration in all_declarations()
        for entry in declaration.compiles
    }
    written = {p.values[1].name for p in KERNELS}
    assert declared == {name for name in written if name.endswith("_kernel")}


def test_operations_keep_the_naming():
    for declaration in all_declarations():
        name = declaration.name
        assert declaration.operation.__name__ == name
        assert declaration.reference.__name__ == f"{name}_reference"
        assert declaration.triton.__name__ == f"{name}_triton"
        assert inspect.getdoc(declaration.operation)
