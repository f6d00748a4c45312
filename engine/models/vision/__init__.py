"""Vision-language inputs: processors, image layouts, patch geometry."""
