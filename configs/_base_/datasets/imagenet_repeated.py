# As imagenet.py, with repeated augmentation: three versions of an image meet in one epoch, in different
# processes where there are several, and an epoch shows a third of the images.
_base_ = './imagenet.py'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True, num_repeats=3)
)
