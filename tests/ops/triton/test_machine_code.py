"""What the compiled kernels need and do, for sm_80 and sm_90, without a GPU."""

import pytest

from mmlk.ops.triton import compat, machine_code

EXAMPLES = machine_code.examples()
POINTS = [
    pytest.param(
        name, arch, id=f'{name}-sm_{arch}', marks=[pytest.mark.slow] if example.slow else []
    )
    for name, example in EXAMPLES.items()
    for arch in example.archs
]


@pytest.mark.parametrize('name,arch', POINTS)
def test_machine_code_fulfils_what_the_example_says(name, arch):
    example = EXAMPLES[name]
    report = machine_code.inspect(machine_code.launch_of(example), arch)
    assert report.stack == 0, 'registers are spilled'
    assert report.registers <= example.registers[arch >= 90]
    assert report.share('FFMA') >= (example.ffma or 0.0)
    assert (report.tensor_core_instructions > 0) == example.tensor_cores


def test_another_triton_is_refused_with_the_version_that_is_known():
    launch = machine_code.launch_of(next(iter(EXAMPLES.values())))
    with pytest.raises(RuntimeError, match=rf'install triton=={compat.CHECKED} to inspect'):
        compat.compile_for(object(), 80, launch.args, launch.options)


def test_without_the_method_that_compiles_processes_compile_independently(monkeypatch):
    class Plain:
        pass

    assert compat.function_with_lock(None) is not compat.triton.JITFunction
    monkeypatch.setattr(compat.triton, 'JITFunction', Plain)
    assert compat.function_with_lock(None) is Plain
