"""Using trained stages: embeddings of a store, and text to video.

from dalle2_video.generation import VideoPipeline
pipeline = VideoPipeline.from_export("exported")
pipeline.save("circle.mp4", pipeline.generate(["a red circle moves left"])[0])
"""

from dalle2_video.generation.pipeline import VideoPipeline as VideoPipeline
from dalle2_video.generation.requests import Request as Request
from dalle2_video.sample_config import SampleConfig as SampleConfig
