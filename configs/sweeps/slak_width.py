# SLaK-T at several widths, dense and with 40 % of the weights at zero, 120 epochs: sparse at 1.3 has
# about as many weights as dense at 1.0. Published is the sparse network of width 1.3 alone.
base = 'mmlk::slak_t_120e_in1k'


def width(factor):
    dims = [int(channels * factor) for channels in (96, 192, 384, 768)]
    arch = dict(
        _delete_=True,
        depths=(3, 3, 9, 3),
        dims=dims,
        kernel_sizes=(51, 49, 47, 13),
        small_kernel_size=5,
        decomposed=True,
        branch_norm=True,
    )
    return {'model.backbone.arch': arch, 'model.head.in_channels': dims[-1]}


axes = [
    dict(values=[('width1.0', width(1.0)), ('width1.3', width(1.3)), ('width1.5', width(1.5))]),
    dict(key='default_hooks.sparse_mask.density', values=[('dense', 1.0), ('sparse', 0.6)]),
]
source = "authors' README (VITA-Group/SLaK), which counts the weights that are kept"
published = {'width1.3-sparse': dict(parameters=30e6, macs=5.0e9, metric=81.6)}
