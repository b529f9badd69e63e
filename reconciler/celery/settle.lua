-- settle: forgets a purge that has been restored, or has expired.
--
-- KEYS[1]  the purge      KEYS[2]  the index (quarantine.lua)
-- ARGV[1]  its id         ARGV[2]  how many pieces the caller has seen, '' for no purge
--
-- Returns 1, or 0 where it has more by now: it goes on, and is not forgotten.
if (redis.call('HGET', KEYS[1], 'pieces') or ARGV[2]) ~= ARGV[2] then
  return 0
end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
