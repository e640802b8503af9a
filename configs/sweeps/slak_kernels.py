# SLaK-T with kernels of 31, 51 and 61, sparse from scratch, 120 epochs (authors' README).
base = 'mmlk::slak_t_120e_in1k'
axes = [
    dict(
        key='model.backbone.arch',
        values=[('kernel31', 'tiny_31'), ('kernel51', 'tiny'), ('kernel61', 'tiny_61')],
    )
]
source = "authors' README (VITA-Group/SLaK), which counts the weights that are kept"
published = dict(
    kernel31=dict(parameters=30e6, macs=4.8e9, metric=81.5),
    kernel51=dict(parameters=30e6, macs=5.0e9, metric=81.6),
    kernel61=dict(parameters=31e6, macs=5.2e9, metric=81.5),
)
