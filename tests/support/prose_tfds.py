"""A TFDS dataset of short documents, as a stranger could have prepared it."""

from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow.core.example import example_pb2

from tests.support.small_corpus import document


def write_tfds(directory: Path, file_format: str) -> None:
    """The dataset "prose" in `directory`, .../prose/VERSION: documents 0 to 99, in three files of the split "train"."""
    directory.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(directory, dataset_name="prose", filetype_suffix=file_format)
    bounds = [0, 30, 70, 100]
    for shard in range(3):
        path = directory / f"prose-train.{file_format}-{shard:05d}-of-00003"
        writer = tf.io.TFRecordWriter(str(path)) if file_format == "tfrecord" else ArrayRecordWriter(str(path))
        for i in range(bounds[shard], bounds[shard + 1]):
            example = example_pb2.Example()
            for name, text in (("title", f"Document {i}"), ("text", document(i))):
                example.features.feature[name].bytes_list.value.append(text.encode())
            writer.write(example.SerializeToString())
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({"title": tfds.features.Text(), "text": tfds.features.Text()}),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[30, 40, 30], num_bytes=0)],
        filename_template=template,
        check_data=False,
    )
