-- touch: write something, so that the WAIT that follows covers all that was written before, on whatever connection.
-- (durability: replicated; a message that was accepted over a connection that is gone writes nothing when sent again.)
local function touch(keys)
  redis.call('SET', prefix_of(keys) .. 'touch', '', 'PX', 1000)
  return 1
end

define('touch', touch, { 'allow-oom' })
