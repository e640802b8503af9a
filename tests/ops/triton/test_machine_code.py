"""What the compiled kernels need and do, for sm_80 and sm_90, without a GPU."""

import pytest

from mmlk.ops.triton import machine_code

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
