"""Networks as files for apps without Python: Core AI, Core ML and MLX's own"""
