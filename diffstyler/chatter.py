"""What libraries say of choices that are ours, as patterns for :func:`warnings.filterwarnings`."""

LIBRARY_CHATTER = (
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*module\(s\) in eval mode at the start of training",  # the base model is frozen
    r".*does not have many workers",  # rows are paths and words
    r".*You have overridden `transfer_batch_to_device`",
    r".*`LightningModule.configure_optimizers` returned",
    # Lightning's CLI calls them
    r"\s*(``(ArgumentParser.add_instantiator|instantiate_classes)``|skip_none parameter) was deprecated",
    r"\s*By default only one JsonargparseDeprecationWarning",
)
