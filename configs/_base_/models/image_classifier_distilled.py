# As image_classifier.py, with DeiT's teacher: hard labels for the second branch of the head, at equal
# weight. The teacher is loaded when a training starts; testing needs neither it nor timm.
_base_ = './image_classifier.py'
model = dict(
    type='mmlk.DistilledClassifier',
    teacher=dict(type='TimmClassifier', model_name='regnety_160'),
    teacher_checkpoint='https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth',
    alpha=0.5,
)
